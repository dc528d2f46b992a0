"""`codec.encode` takes what people have in memory, and the latent it returns behaves as an array."""

import io
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageCms

import vaejax
from tests.support import codec_run
from tests.support.codec_run import pan
from tests.support.media_files import corners
from vaejax.codec.latent import Latent
from vaejax.data import media


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def codec(model):
    return vaejax.load(model)


CLIP = np.stack(pan(5))  # (5, 32, 48, 3) uint8


@pytest.mark.variants
def test_tensors_encode_and_decode_as_their_arrays(codec):
    torch = pytest.importorskip("torch")
    floats = CLIP.astype(np.float32) / 127.5 - 1
    for tensor, array in (
        (torch.from_numpy(CLIP), CLIP),
        (torch.from_numpy(floats).requires_grad_(), floats),
        (torch.from_numpy(floats).double(), floats),
        (torch.from_numpy(floats).bfloat16(), torch.from_numpy(floats).bfloat16().float().numpy()),
        (list(torch.from_numpy(CLIP)), CLIP),
        (torch.from_numpy(CLIP.transpose(0, 3, 1, 2)).permute(0, 2, 3, 1), CLIP),
    ):
        latent, wanted = codec.encode(tensor), codec.encode(array)
        assert isinstance(latent.values, np.ndarray) and latent.frame_dtype == wanted.frame_dtype
        np.testing.assert_array_equal(latent.values, wanted.values)
    stream = codec.stream_encoder()
    parts = [stream.push(torch.from_numpy(CLIP[:2])), stream.push(torch.from_numpy(CLIP[2:])), stream.flush()]
    np.testing.assert_array_equal(np.concatenate(parts), codec.encode(CLIP).values)
    values = codec.encode(CLIP).values
    np.testing.assert_array_equal(codec.decode(torch.from_numpy(values)), codec.decode(values))


@pytest.mark.parametrize(
    "library", ["numpy", *(pytest.param(name, marks=pytest.mark.variants) for name in ("torch", "jax"))]
)
@pytest.mark.parametrize(
    ("name", "order"),
    [("CHW", (2, 0, 1)), ("TCHW", (0, 3, 1, 2)), ("CTHW", (3, 0, 1, 2)), ("BTCHW", (0, 1, 4, 2, 3)),
     ("BCTHW", (0, 4, 1, 2, 3))],
)  # fmt: skip
def test_channels_first_is_refused_with_the_permutation_that_mends_it(codec, library, name, order):
    frames = CLIP[0] if len(name) == 3 else CLIP if len(name) == 4 else CLIP[None]
    x, method = frames.transpose(order), "transpose"
    if library == "torch":
        x, method = pytest.importorskip("torch").from_numpy(x.copy()), "permute"
    elif library == "jax":
        x = jnp.asarray(x)
    with pytest.raises(ValueError, match="looks like channels first; accepted: channels last") as error:
        codec.encode(x)
    advice = re.search(rf"x\.{method}\(([\d, ]+)\)", str(error.value))
    mended = getattr(x, method)(*map(int, advice[1].split(", ")))
    np.testing.assert_array_equal(np.asarray(mended), frames)
    np.testing.assert_array_equal(codec.encode(mended).values, codec.encode(frames).values)


def rgba():
    image = Image.fromarray(corners(32, 48)).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def palette():
    image = Image.fromarray(corners(32, 48)).quantize(8)
    image.info["transparency"] = 3
    return image


def gray16():
    return Image.fromarray(np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16))


def rotated():
    image = Image.fromarray(corners(32, 48))
    image.getexif()[0x0112] = 6
    return image


def profiled():
    image = Image.fromarray(corners(32, 48))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    return image


@pytest.mark.parametrize("make", [rgba, palette, gray16, rotated, profiled])
def test_images_are_converted_as_the_photo_reader_converts_their_files(codec, make):
    image, file = make(), io.BytesIO()
    image.save(file, "PNG", exif=image.getexif(), icc_profile=image.info.get("icc_profile"))
    before = image.tobytes()
    size = (48, 32) if make is rotated else (32, 48)
    wanted = media.read(file.getvalue(), "image", frames=1, height=size[0], width=size[1])[0]
    wanted = codec.encode(wanted)
    for each in (image, Image.open(io.BytesIO(file.getvalue()))):
        latent = codec.encode(each)
        assert (latent.frames, latent.height, latent.width, latent.ndim) == (1, *size, 3)
        np.testing.assert_array_equal(latent.values, wanted.values)
    assert image.tobytes() == before


def test_a_list_of_images_is_a_clip(codec):
    images = [Image.fromarray(frame) for frame in CLIP]
    np.testing.assert_array_equal(codec.encode(images).values, codec.encode(CLIP).values)
    np.testing.assert_array_equal(codec.encode([images]).values, codec.encode(CLIP[None]).values)
    images[2] = images[2].resize((40, 40))
    with pytest.raises(ValueError, match=r"the items of a list have shapes .*; accepted: items of one shape"):
        codec.encode(images)


def test_images_that_say_too_little_are_refused_in_one_line(codec):
    cut = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(cut, "PNG")
    for image, told in (
        (Image.new("F", (32, 32)), "floating-point pixels, whose range is unknown"),
        (Image.open(io.BytesIO(cut.getvalue()[:-200])), "an image cannot be read: "),
    ):
        with pytest.raises(ValueError, match=told) as error:
            codec.encode(image)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("floats", "told"),
    [
        (CLIP.astype(np.float32), "which looks like 0 to 255; accepted"),
        (CLIP.astype(np.float64) + 200, "which looks like 0 to 255; accepted"),
        (CLIP.astype(np.float32) - 3, "which looks like 0 to 255; accepted"),  # an overshooting filter
        (CLIP / 32 - 4, "absolute value of 4; accepted"),
        (np.where(CLIP, np.nan, 0), "absolute value of nan; accepted"),
    ],
)
def test_floats_beyond_the_range_are_refused(codec, floats, told):
    with pytest.raises(ValueError, match=told):
        codec.encode(floats)


@pytest.mark.parametrize("xp", [np, jnp])
def test_a_latent_is_an_array_to_numpy_and_jax(codec, xp):
    z = codec.encode(xp.asarray(CLIP))
    v = np.asarray(z.values)
    assert isinstance(z, Latent) and isinstance(z.values, jax.Array if xp is jnp else np.ndarray)
    assert (z.shape, z.ndim, z.size, len(z), z.dtype) == (v.shape, 4, v.size, len(v), np.float32)
    for found, wanted in (
        (np.asarray(z), v),
        (jnp.asarray(z), v),
        (np.asarray(z, np.float64), v.astype(np.float64)),
        (z * 2, v * 2),
        (2 - z, 2 - v),
        (z / z, v / v),
        (-z, -v),
        (abs(z) ** 0.5, abs(v) ** 0.5),
        (v + z, v + v),
        (jnp.asarray(v) + z, v + v),
        (z + jnp.asarray(v), v + v),
        (z @ np.ones((4, 2), np.float32), v @ np.ones((4, 2), np.float32)),
        (z > 0, v > 0),
        (z == z, v == v),
        (z[0], v[0]),
        (z[..., :2, 0], v[..., :2, 0]),
        (list(z)[1], v[1]),
        (np.mean(z, axis=0), v.mean(0)),
        (np.stack([z, z]), np.stack([v, v])),
        (jnp.sin(z), np.sin(v)),
        (jnp.concatenate([z, z]), np.concatenate([v, v])),
        (jax.jit(lambda x: jnp.asarray(x) * 2 + x)(z), 3 * v),
    ):
        assert not isinstance(found, Latent)
        np.testing.assert_allclose(np.asarray(found), wanted, rtol=1e-6)
    assert isinstance(jax.tree.map(lambda x: 2 * x, z), Latent)
    assert str(z) == repr(z) and "\n" not in str(z) and len(str(z)) < 120
    moved = codec.decode(z.replace(values=z * 0.5))
    np.testing.assert_array_equal(moved, codec.decode(np.asarray(z) * np.float32(0.5))[:5, :32, :48])


def test_an_image_of_latents_cannot_claim_more_frames(codec):
    image, clip = codec.encode(CLIP[0]), codec.encode(CLIP)
    assert codec.decode(image).shape == CLIP[0].shape
    assert codec.decode(image.replace(values=image.values[None])).shape == CLIP[:1].shape
    for wrong in (image.replace(frames=5), clip.replace(values=clip.values[0]), clip.replace(frames=1)):
        with pytest.raises(ValueError, match="which does not match the original clip"):
            codec.decode(wrong)


@pytest.mark.variants
def test_encoding_arrays_imports_neither_torch_nor_pillow(model):
    script = f"""if True:
        import sys, numpy as np, vaejax
        codec = vaejax.load({model!r})
        codec.decode(2 * codec.encode(np.zeros((16, 16, 3), np.uint8)))
        print(sorted({{"torch", "PIL"}} & sys.modules.keys()))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
