"""A model of RGB and alpha encodes arrays, images and files, and decodes to formats that keep alpha."""

import io
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

import vaejax
from tests.support import codec_run, cutouts, media_files
from tests.support.codec_run import run, shown
from tests.support.cutouts import cutout
from tests.support.models import randomized
from vaejax.codec import media_writer
from vaejax.codec.codec import Codec
from vaejax.codec.convert import Converter
from vaejax.codec.load import TrainedVAE
from vaejax.codec.origin import Settings
from vaejax.data import media
from vaejax.errors import InputError

CLIP = np.stack([cutout(32, 48, shift=t) for t in range(7)])
SEEN = CLIP[..., 3] > 32


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"), pixel_channels=4)


@pytest.fixture(scope="module")
def codec(model):
    return vaejax.load(model)


def of_channels(channels):
    model, params = randomized(pixel_channels=channels)
    return Codec(TrainedVAE("model", model.architecture, params, np.zeros(4), np.ones(4), 0, "f"))


# Arrays


@pytest.mark.parametrize("channels", [1, 4, 5])
def test_arrays_have_the_channels_of_the_model(channels):
    codec = of_channels(channels)
    frames = np.random.default_rng(0).integers(256, size=(2, 5, 21, 35, channels), dtype=np.uint8)
    batch = codec.encode(frames)
    assert codec.decode(batch).shape == frames.shape
    stream, decoder = codec.stream_encoder(), codec.stream_decoder((5, 21, 35))
    parts = [stream.push(frames[:, :2]), stream.push(frames[:, 2:]), stream.flush()]
    np.testing.assert_allclose(np.concatenate(parts, 1), batch.values, atol=1e-5)
    back = np.concatenate([decoder.push(batch.values), decoder.flush()], 1)
    np.testing.assert_array_equal(back, codec.decode(batch))
    with pytest.raises(ValueError, match=rf"accepted: uint8, .* with {channels} channels \(last axis\)"):
        codec.encode(np.zeros((5, 21, 35, 3), np.uint8))
    planar = np.zeros((5, channels, 21, 35), np.uint8)
    with pytest.raises(ValueError, match=r"looks like channels first; accepted: .*transpose\(0, 2, 3, 1\)"):
        codec.encode(planar)


def test_an_image_has_its_alpha(codec):
    file = io.BytesIO()
    Image.fromarray(CLIP[0]).save(file, "PNG")
    for image in (Image.open(file), Image.fromarray(CLIP[0])):
        wanted = codec.encode(cutouts.whitened(CLIP[0])).values
        np.testing.assert_array_equal(codec.encode(image).values, wanted)
    opaque = np.dstack([CLIP[0, ..., :3], np.full((32, 48), 255, np.uint8)])
    rgb = Image.fromarray(CLIP[0, ..., :3])
    np.testing.assert_array_equal(
        codec.encode([rgb, rgb]).values, codec.encode(opaque[None].repeat(2, 0)).values
    )
    with pytest.raises(ValueError, match="a Pillow image has no 5 channels; accepted: an array"):
        of_channels(5).encode(rgb)


# Files


def test_files_are_encoded_with_alpha_and_decoded_to_formats_that_keep_it(model, codec, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(CLIP[0]).save(source / "a.png")
    Image.fromarray(CLIP[0, ..., :3]).save(source / "b.jpg")
    cutouts.write_clip(source / "c.mov", CLIP, "prores_ks")
    cutouts.write_clip(source / "d.webm", CLIP, "libvpx-vp9")
    media_files.write_clip(source / "e.mp4", list(CLIP[..., :3]), audio=True)
    assert run(model, "encode", source, tmp_path / "latents", "--dtype=float32") == 0
    assert run(model, "decode", tmp_path / "latents", tmp_path / "out", "--crf=4") == 0
    names = {
        "a.png": "a.png",
        "b.jpg": "b.jpg.png",
        "c.mov": "c.mov",
        "d.webm": "d.webm",
        "e.mp4": "e.mp4.mov",
    }
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(names.values())
    for name, written in names.items():
        kind = media.kind_of(name)
        original, found = (
            np.stack([frame for _, _, frame in media.stream(tmp_path / folder, kind, 4)])
            for folder in (f"in/{name}", f"out/{written}")
        )
        wanted = codec.decode(codec.encode(original if kind == "video" else original[0]))
        wanted = wanted.reshape(original.shape)
        error, visible = np.abs(found.astype(int) - wanted), wanted[..., 3] > 64
        # A network that was not trained decodes noise, which 4:2:0 blurs in .webm.
        of_alpha, of_colors = {"webm": (12, 10), "mov": (2, 0.5)}.get(written.split(".")[-1], (1, 0.5))
        assert error[..., 3].max() <= of_alpha and error[visible].mean() <= of_colors
        assert wanted[..., 3].std() > 10
    with av.open(str(tmp_path / "out" / "e.mp4.mov")) as container:
        assert container.streams.audio and container.streams.video[0].codec_context.name == "prores"
    assert run(model, "reconstruct", source / "b.jpg", tmp_path / "b.jpg") == 2


def test_a_format_without_alpha_is_refused_by_name(model, tmp_path, capsys):
    Image.fromarray(CLIP[0]).save(tmp_path / "a.png")
    assert run(model, "reconstruct", tmp_path / "a.png", tmp_path / "b.jpg") == 2
    assert "a file whose name ends in .png, .webp, .mov, .webm" in capsys.readouterr().err
    assert run(model, "reconstruct", tmp_path / "a.png", tmp_path / "b.mov") == 2
    assert "a.png is a photo with alpha; accepted: a name that ends in .png, .webp" in capsys.readouterr().err


def test_files_have_no_five_channels():
    with pytest.raises(
        InputError, match=r"^model: a model of 5 pixel channels; accepted: one of 3 \(RGB\) or 4"
    ):
        Converter(of_channels(5), Settings())


@pytest.mark.parametrize("extension", [".mov", ".webm"])
@pytest.mark.parametrize("size", [(32, 48), (35, 51)])
def test_a_written_clip_has_its_alpha_and_its_times(tmp_path, extension, size):
    """Read by FFmpeg's decoders; opaque and transparent pixels stay so."""
    frames = np.stack([cutout(*size, shift=t) for t in range(5)])
    times = [0.0, 0.04, 0.12, 0.14, 0.34]
    path = tmp_path / f"clip{extension}"
    with open(path, "w+b") as file:
        arguments = (size, times, 0.4, Fraction(25), False, 4)
        media_writer.write_clip(file, extension, [frames[:2], frames[2:]], *arguments, channels=4)
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        own = stream.codec_context
        decoder = own if own.name == "prores" else av.CodecContext.create("libvpx-vp9", "r")
        for packet in container.demux(stream):
            found += decoder.decode(packet)
    assert np.abs(np.array([frame.time for frame in found]) - times).max() < 1e-3
    scale = 2 ** (found[0].format.components[3].bits - 8)
    kind = np.uint16 if scale > 1 else np.uint8
    for frame, picture in zip(found, frames, strict=True):
        plane = frame.planes[3]
        alpha = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : size[1]].astype(int)
        assert np.abs(alpha / scale - picture[..., 3]).max() <= (2 if extension == ".mov" else 6)
    assert shown(path)[1] == size
    read = media.read(path, "video", frames=5, height=size[0], width=size[1], channels=4).astype(int)
    assert np.abs(read - frames)[frames[..., 3] == 255].mean() < 2
    if extension == ".mov":
        assert np.abs(read - frames)[..., 3].max() <= 2
        for exact in (0, 255):
            assert np.all(read[frames[..., 3] == exact][..., 3] == exact)


@pytest.mark.parametrize("extension", [".png", ".webp"])
def test_a_written_photo_has_its_alpha(extension):
    file = io.BytesIO()
    media_writer.write_photo(file, extension, CLIP[0])
    with Image.open(file) as photo:
        found = np.asarray(photo.convert("RGBA")).astype(int)
    np.testing.assert_array_equal(found[..., 3], CLIP[0, ..., 3])
    assert np.abs(found - CLIP[0])[SEEN[0]].mean() <= (0 if extension == ".png" else 4)
