"""python -m vaejax.codec keeps a file's frames, times, size, rotation, colours and audio."""

import io
import json
import re
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image, ImageCms
from safetensors import safe_open
from safetensors.numpy import load_file

import vaejax
from tests.support import codec_run, media_files
from tests.support.codec_run import NTSC, pan, run, shown
from tests.support.media_files import corner_colors, corners, turn, write_clip
from vaejax.codec import audio
from vaejax.codec import media_writer as clip_writer
from vaejax.data import media
from vaejax.errors import InputError


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def codec(model):
    return vaejax.load(model)


def there_and_back(model, path, folder, *flags, extension=""):
    """Encodes and decodes a file; the paths of the latent and of what it decodes to."""
    latent, back = folder / "x.latent", folder / f"back{extension or path.suffix}"
    assert run(model, "encode", path, latent, *flags) == 0
    assert run(model, "decode", latent, back, *flags) == 0
    return latent, back


def sound(path):
    """The bytes of every audio packet, and its seconds from the clip's first frame."""
    with av.open(str(path)) as container:
        start = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        return [bytes(p) for p in packets], np.array([float(p.pts * p.time_base) for p in packets]) - start


@pytest.mark.parametrize(
    ("count", "extension"), [(1, ".mp4"), (2, ".mp4"), (3, ".mp4"), (31, ".mkv"), (81, ".mp4")]
)
def test_a_clip_keeps_its_frames_its_size_and_its_rate(model, codec, tmp_path, count, extension):
    path = write_clip(tmp_path / f"clip{extension}", pan(count, 35, 51), NTSC)
    latent, back = there_and_back(model, path, tmp_path, "--crf=0", "--dtype=float32")
    frames = media.read(path, "video", frames=count, height=35, width=51)
    encoded = codec.encode(frames)
    np.testing.assert_allclose(load_file(latent)["latent"], encoded.values, atol=1e-4)
    wanted = codec.decode(encoded)
    found = media.read(back, "video", frames=count, height=35, width=51)
    assert np.abs(found.astype(int) - wanted).max() <= 4  # 4:4:4, without loss: 8 bits of YUV
    times, size, rate = shown(back)
    assert len(times) == count and size == (35, 51)
    assert count == 1 or rate == NTSC or extension == ".mkv"
    exact = np.arange(count) / float(NTSC)
    np.testing.assert_allclose(times, exact, atol=6e-4 if extension == ".mkv" else 1e-9)
    assert media.probe(back, "video")["duration"] == pytest.approx(count / float(NTSC), abs=2e-3)
    with safe_open(latent, "numpy") as file:
        header = file.metadata()
    told = {
        key: header[key] for key in ("frames", "height", "width", "fps", "kind", "source", "variable_rate")
    }
    assert told == {
        "frames": str(count),
        "height": "35",
        "width": "51",
        "fps": "24000/1001",
        "kind": "video",
        "source": path.name,
        "variable_rate": "false",
    }


@pytest.mark.parametrize("extension", [".mp4", ".mov", ".mkv", ".webm"])
def test_a_variable_rate_keeps_every_time(model, tmp_path, extension):
    ticks = list(np.cumsum([0, *(40, 33, 120, 20, 207) * 4]))
    path = write_clip(tmp_path / "clip.mp4", pan(21), times=ticks, tick=Fraction(1, 1000))
    duration = media.probe(path, "video")["duration"]
    latent, back = there_and_back(model, path, tmp_path, extension=extension)
    np.testing.assert_allclose(load_file(latent)["time"], np.array(ticks) / 1000, atol=1e-9)
    times, _, _ = shown(back)
    assert media.probe(back, "video")["duration"] == pytest.approx(duration, abs=2e-3)
    np.testing.assert_allclose(times, np.array(ticks) / 1000, atol=6e-4)
    with safe_open(latent, "numpy") as file:
        assert file.metadata()["variable_rate"] == "true"
        assert Fraction(file.metadata()["fps"]) == pytest.approx(20 / ticks[-1] * 1000, rel=1e-3)


def test_a_rotated_clip_stands_upright(model, codec, tmp_path):
    path = write_clip(tmp_path / "clip.mp4", [corners(32, 48)] * 6)
    turn(path, 0, 1, -1, 0)
    latent, back = there_and_back(model, path, tmp_path)
    times, size, _ = shown(back)
    assert size == (48, 32) and len(times) == 6
    with av.open(str(back)) as container:
        assert next(container.decode(video=0)).rotation == 0
    upright = media.read(path, "video", frames=6, height=48, width=32)
    np.testing.assert_allclose(load_file(latent)["latent"], codec.encode(upright).values, atol=0.01)


@pytest.mark.parametrize("extension", list(clip_writer.CLIPS))
@pytest.mark.parametrize("size", [(64, 96), (63, 97)])
def test_colours_read_back_as_they_were(tmp_path, extension, size):
    picture = corners(*size)
    with open(tmp_path / f"clip{extension}", "w+b") as file:
        rate = Fraction(25)
        clip_writer.write_clip(
            file, extension, [np.stack([picture] * 3)], size, [0, 0.04, 0.08], 0.12, rate, True, 4
        )
    for player in (None, "ours"):  # a player that goes by the tags, and the reader
        if player:
            found = media.read(
                tmp_path / f"clip{extension}", "video", frames=3, height=size[0], width=size[1]
            )[2]
        else:
            with av.open(str(tmp_path / f"clip{extension}")) as container:
                frame = next(container.decode(video=0))
                assert (int(frame.colorspace), int(frame.color_range)) == (1, 1)
                y, cb, cr = (
                    float(plane[plane.shape[0] // 4, plane.shape[1] // 4])
                    for plane in (
                        np.frombuffer(p, np.uint8).reshape(p.height, p.line_size)[:, : p.width]
                        for p in frame.planes
                    )
                )
            planes = media_files.to_yuv(picture, "709", "limited", halved=False)
            wanted = [plane[size[0] // 4, size[1] // 4] for plane in planes]
            assert np.abs(np.array([y, cb, cr]) - wanted).max() <= 2
            continue
        assert np.abs(corner_colors(found) - corner_colors(picture)).max() <= 4


def write_with_sound(path, codec, rate=48000, seconds=2.0, late=0.0, video_late=0.0, layout="mono"):
    """A clip of 25 fps beside a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=25)
        video.height, video.width, video.pix_fmt = 32, 48, "yuv420p"
        audio = container.add_stream(codec, rate=rate, layout=layout)
        tone = 0.5 * np.sin(np.arange(int(rate * seconds)) * 440 * 2 * np.pi / rate)
        kinds = {"libopus": "flt", "libmp3lame": "fltp", "aac": "fltp", "pcm_s16le": "s16"}
        kind = kinds[codec]
        tone = (tone * 32767).astype(np.int16) if kind == "s16" else tone.astype(np.float32)
        for i, picture in enumerate(pan(int(25 * seconds))):
            shot = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            shot.pts, shot.time_base = i + round(25 * video_late), Fraction(1, 25)
            container.mux(video.encode(shot))
        container.mux(video.encode())
        for start in range(0, len(tone), 960):
            heard = np.repeat(tone[None, start : start + 960], audio.layout.nb_channels, axis=1)
            frame = av.AudioFrame.from_ndarray(heard, kind, layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = round(late * rate) + start
            container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("clip.mp4", "aac", {}),
        ("clip.mov", "aac", {"late": 0.3}),
        ("clip.mp4", "aac", {"video_late": 0.4}),
        ("clip.mkv", "libopus", {}),
        ("clip.mp4", "libmp3lame", {"rate": 44100}),
        ("clip.mkv", "pcm_s16le", {"rate": 8000}),
    ],
)
def test_audio_is_copied_bit_for_bit(model, tmp_path, name, codec, options):
    path = write_with_sound(tmp_path / name, codec, **options)
    latent, back = there_and_back(model, path, tmp_path)
    (wanted, times), (found, found_times) = sound(path), sound(back)
    assert len(wanted) > 10 and found == wanted
    np.testing.assert_allclose(found_times, times, atol=1.1e-3)
    stored = load_file(latent)
    np.testing.assert_allclose(stored["audio_time"], times, atol=1e-9)
    with av.open(io.BytesIO(stored["audio"].tobytes())) as container:
        assert [bytes(p) for p in container.demux(audio=0) if p.size] == wanted
    with av.open(str(back)) as container:
        heard = np.concatenate([f.to_ndarray().ravel() for f in container.decode(audio=0)])
        assert np.isfinite(heard.astype(float)).all() and len(heard)


@pytest.mark.parametrize("name", ["clip.avi", "clip.mov"])
def test_pcm_of_two_channels_goes_into_an_mp4(model, tmp_path, name):
    path = write_with_sound(tmp_path / name, "pcm_s16le", layout="stereo")
    _, back = there_and_back(model, path, tmp_path, extension=".mp4")
    (wanted, times), (found, found_times) = sound(path), sound(back)
    assert b"".join(found) == b"".join(wanted) and len(found) > 10
    assert found_times[0] == pytest.approx(times[0], abs=1.1e-3)
    with av.open(str(back)) as container:
        assert container.streams.audio[0].layout.name == "stereo"


def test_damaged_audio_is_left_out_and_told(model, tmp_path, capsys):
    folder = tmp_path / "latents"
    folder.mkdir()
    assert run(model, "encode", write_with_sound(tmp_path / "a.mp4", "aac"), folder / "a.mp4.latent") == 0
    data = (folder / "a.mp4.latent").read_bytes()
    room = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:room])
    for name, tensor, share in (("b", "audio", 0.5), ("c", "audio", 0), ("d", "audio_time", 0.5)):
        start, stop = (room + at for at in header[tensor]["data_offsets"])
        at = start + int((stop - start) * share) // 8 * 8
        (folder / f"{name}.mp4.latent").write_bytes(data[:at] + b"\xff" * (stop - at) + data[stop:])
    header["sound"] = header.pop("audio")
    other = json.dumps(header).encode().ljust(room - 8)
    (folder / "e.mp4.latent").write_bytes(data[:8] + other + data[room:])
    assert run(model, "decode", folder, tmp_path / "out") == 0
    told = capsys.readouterr().err
    for name in "abcde":
        assert len(shown(tmp_path / "out" / f"{name}.mp4")[0]) == 50
        line = f"{name}.mp4.latent: its audio is damaged.*; decoded without audio"
        assert bool(re.search(line, told)) == (name != "a")


def test_a_file_whose_audio_cannot_be_read_is_not_mistaken_for_one_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"audio: .*No such file"):
        audio.copy(str(tmp_path / "gone.mp4"), 0.0, None)


def test_audio_lies_between_the_frames(model, tmp_path):
    _, back = there_and_back(model, write_with_sound(tmp_path / "a.mp4", "aac", seconds=4), tmp_path)
    with av.open(str(back)) as container:
        order = [packet.stream.type for packet in container.demux() if packet.size]
    assert "".join(kind[0] for kind in order).count("av") > 5


def test_a_container_that_cannot_take_the_audio_is_told(model, tmp_path, capsys):
    path = write_with_sound(tmp_path / "a.mp4", "aac")
    _, back = there_and_back(model, path, tmp_path, extension=".webm")
    line = "x.latent: .webm cannot hold audio codec aac; decoded without audio; choose .mkv"
    assert line in capsys.readouterr().err
    assert len(shown(back)[0]) == 50
    with av.open(str(back)) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp", "photo.tif"])
def test_a_photo_becomes_a_photo(model, codec, tmp_path, name):
    Image.fromarray(pan(1, 35, 51)[0]).save(tmp_path / name)
    latent, back = there_and_back(model, tmp_path / name, tmp_path, extension=".png")
    frame = media.read(tmp_path / name, "image", frames=1, height=35, width=51)[0]
    wanted = codec.decode(codec.encode(frame))
    assert np.abs(np.asarray(Image.open(back)).astype(int) - wanted).max() <= 2  # latents in halves
    with safe_open(latent, "numpy") as file:
        assert file.metadata()["kind"] == "image" and "fps" not in file.metadata()


@pytest.mark.parametrize(("name", "count"), [("a.gif", 8), ("a.webp", 8), ("still.gif", 1), ("a.mpo", 2)])
def test_an_animation_is_told(model, tmp_path, capsys, name, count):
    first, *others = [Image.fromarray(corners()).rotate(90 * i) for i in range(count)]
    first.save(tmp_path / name, save_all=True, append_images=others)
    assert run(model, "encode", tmp_path / name, tmp_path / "a.latent") == 0
    told = f"{name}: only the first of {count} pictures is encoded" in capsys.readouterr().err
    assert told == (name in ("a.gif", "a.webp"))


@pytest.mark.parametrize("extension", list(clip_writer.PHOTOS))
def test_a_written_photo_says_that_it_is_srgb_in_the_same_bytes_each_time(extension):
    picture, files = corners(32, 48), []
    for _ in range(2):
        out = io.BytesIO()
        clip_writer.write_photo(out, extension, picture)
        files.append(out.getvalue())
    assert files[0] == files[1]
    info = Image.open(io.BytesIO(files[0])).info
    if extension == ".png":
        assert "srgb" in info
    else:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(info["icc_profile"])))
        assert name.startswith("sRGB")
    read = media.read(files[0], "image", frames=1, height=32, width=48)[0]
    assert np.abs(corner_colors(read) - corner_colors(picture)).max() <= 6
