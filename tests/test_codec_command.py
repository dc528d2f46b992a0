"""python -m vaejax.codec on real files: nothing of a clip is lost, nothing is torn, bad files are told."""

import io
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from fractions import Fraction

import av
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import vaejax
from configs import demo
from tests import media_files
from tests.frames import pans
from tests.media_files import corner_colours, corners, turn, write_clip
from tests.models import SMALL, randomised
from vaejax import mesh as sharding
from vaejax.checkpoint import Checkpoints
from vaejax.codec import audio, clip_writer
from vaejax.codec.__main__ import main
from vaejax.data import media
from vaejax.errors import InputError
from vaejax.evaluation import latents
from vaejax.train_state import TrainState

pytestmark = pytest.mark.usefixtures("as_the_command")

NTSC = Fraction(24000, 1001)
OLD = 3  # a checkpoint that is another model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run with two checkpoints and the statistics of their latents."""
    folder = tmp_path_factory.mktemp("run")
    config = demo.get_config("tiny")
    config.model.update({k: tuple(v) if isinstance(v, list) else v for k, v in SMALL.items()})
    (folder / "config.json").write_text(config.to_json_best_effort(indent=2))
    mesh = sharding.make(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (OLD, 7):
            average = jax.tree.map(lambda x, s=step: x * (1 - s / 20), randomised()[1])
            params = {"autoencoder": average, "likelihood": {"log_scale": jnp.zeros(())}}
            state = TrainState(jnp.zeros((), jnp.int32), params, params, optax.adam(1e-3).init(params), {})
            state = jax.device_put(state, sharding.state_shardings(mesh, state))
            checkpoints.save(state, step, {}, json.loads(config.to_json_best_effort()), {})
    for step in (OLD, 7):
        latents.store(folder, step, {"mean": [0.1, -0.2, 0.3, 0.0], "std": [1.0, 2.0, 0.5, 1.5]})
    return str(folder)


@pytest.fixture(scope="module")
def codec(model):
    return vaejax.load(model)


def run(model, *arguments):
    return main([*map(str, arguments), f"--model={model}"])


def there_and_back(model, path, folder, *flags, extension=""):
    """Encodes and decodes a file; the paths of the latent and of what it decodes to."""
    latent, back = folder / "x.latent", folder / f"back{extension or path.suffix}"
    assert run(model, "encode", path, latent, *flags) == 0
    assert run(model, "decode", latent, back, *flags) == 0
    return latent, back


def shown(path):
    """Every frame's seconds from the first, (H, W), and the rate in the header, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        times = np.array([float(frame.pts * frame.time_base) for frame in frames])
        return times - times[0], (frames[0].height, frames[0].width), stream.average_rate


def sound(path):
    """The bytes of every audio packet, and its seconds from the clip's first frame."""
    with av.open(str(path)) as container:
        start = next(container.decode(video=0)).time
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
        return [bytes(p) for p in packets], np.array([float(p.pts * p.time_base) for p in packets]) - start


def pan(length, height=32, width=48):
    return list(pans(1, length, height, width)[0])


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
        assert np.abs(corner_colours(found) - corner_colours(picture)).max() <= 4


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
        assert bool(re.search(f"{name}.mp4.latent: its audio is damaged.*: left out", told)) == (name != "a")


def test_a_file_whose_audio_cannot_be_read_is_not_mistaken_for_one_that_cannot_be_written(tmp_path):
    with pytest.raises(InputError, match=r"audio: .*No such file"):
        audio.copied(str(tmp_path / "gone.mp4"), 0.0, None)


def test_audio_lies_between_the_frames(model, tmp_path):
    _, back = there_and_back(model, write_with_sound(tmp_path / "a.mp4", "aac", seconds=4), tmp_path)
    with av.open(str(back)) as container:
        order = [packet.stream.type for packet in container.demux() if packet.size]
    assert "".join(kind[0] for kind in order).count("av") > 5


def test_a_container_that_cannot_take_the_audio_is_told(model, tmp_path, capsys):
    path = write_with_sound(tmp_path / "a.mp4", "aac")
    _, back = there_and_back(model, path, tmp_path, extension=".webm")
    assert "x.latent: .webm cannot hold its audio, aac: left out; choose .mkv" in capsys.readouterr().err
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
    told = f"{name}: the first of {count} pictures" in capsys.readouterr().err
    assert told == (name in ("a.gif", "a.webp"))


def make_folder(folder, clips=2):
    (folder / "sub").mkdir(parents=True)
    for i in range(clips):
        write_clip(folder / "sub" / f"clip{i}.mp4", pan(9 + i))
    write_clip(folder / "old.avi", pan(5), codec="mpeg4", options={"qscale": "2"})
    Image.fromarray(pan(1)[0]).save(folder / "photo.jpg")
    Image.fromarray(pan(1)[0]).save(folder / "scan.tif")
    (folder / "notes.txt").write_text("no photo")
    (folder / ".hidden.mp4").write_text("no clip")
    return folder


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


MADE = ["old.avi", "photo.jpg", "scan.tif", "sub/clip0.mp4", "sub/clip1.mp4"]
BACK = ["old.avi.mp4", "photo.jpg", "scan.tif.png", "sub/clip0.mp4", "sub/clip1.mp4"]


def test_a_folder_is_walked_and_gone_on_with(model, tmp_path, capsys):
    source = make_folder(tmp_path / "in")
    assert run(model, "encode", source, tmp_path / "latents") == 0
    assert capsys.readouterr().out == "5 encoded\n"
    assert names(tmp_path / "latents") == [f"{name}.latent" for name in MADE]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").rglob("*.latent")}
    gone = tmp_path / "latents" / "sub" / "clip0.mp4.latent"
    gone.unlink()
    assert run(model, "encode", source, tmp_path / "latents", "--workers=3") == 0
    assert capsys.readouterr().out == "1 encoded, 4 already there\n"
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path != gone)
    assert run(model, "decode", tmp_path / "latents", tmp_path / "out") == 0
    assert names(tmp_path / "out") == BACK
    assert run(model, "reconstruct", source, tmp_path / "again") == 0
    assert names(tmp_path / "again") == BACK
    for name in BACK:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_bad_files_are_refused_by_name_and_the_rest_is_done(model, tmp_path, capsys):
    source = make_folder(tmp_path / "in")
    (source / "empty.mp4").touch()
    (source / "text.mp4").write_text("this is not a video\n" * 50)
    write_clip(source / "silent.mp4", [], audio=True)
    Image.fromarray(corners(12, 20)).save(source / "tiny.png")
    Image.fromarray(corners()).save(source / "cut.jpg")
    media_files.keep(source / "cut.jpg", 0.5)
    cut = write_clip(source / "short.mp4", pan(50), movflags="faststart")
    media_files.keep(cut, 0.6)
    count = media.probe(cut, "video")["frames"]
    assert run(model, "encode", source, tmp_path / "latents") == 2
    told = capsys.readouterr()
    assert told.out == "6 encoded, 5 refused\n" and "Traceback" not in told.err
    for name, reason in {
        "empty.mp4": "",
        "text.mp4": "",
        "silent.mp4": "no video",
        "tiny.png": "12x20 .*accepted: from 16x16",
        "cut.jpg": "[Tt]runcated",
    }.items():
        assert re.search(f"error: {name}: .*{reason}", told.err), name
    assert f"short.mp4: damaged after {count} frames, which are kept" in told.err and 1 < count < 50
    assert load_file(tmp_path / "latents" / "short.mp4.latent")["time"].shape == (count,)
    (tmp_path / "latents" / "old.avi.latent").write_bytes(b"no latent")
    assert run(model, "decode", tmp_path / "latents", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert told.out == "5 decoded, 1 refused\n" and "error: old.avi.latent: no latent file" in told.err
    assert "old.avi.mp4" not in names(tmp_path / "out") and len(names(tmp_path / "out")) == 5


def test_what_nobody_foresaw_ends_one_file_only(model, tmp_path, capsys):
    folder = tmp_path / "latents"
    assert run(model, "encode", make_folder(tmp_path / "in", clips=1), folder) == 0
    data = (folder / "photo.jpg.latent").read_bytes()
    odd = data.replace(b'"height": "32"', b'"height":"3e1"')  # no size of an array
    assert odd != data
    (folder / "photo.jpg.latent").write_bytes(odd)
    capsys.readouterr()
    assert run(model, "decode", folder, tmp_path / "out") == 2
    told = capsys.readouterr()
    assert told.out == "3 decoded, 1 refused\n" and "Traceback" not in told.err
    assert "error: photo.jpg.latent: TypeError: " in told.err


def test_a_folder_that_cannot_be_read_is_told(model, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(pan(1)[0]).save(source / "a.png")
    here = os.open(source, os.O_RDONLY)
    for _ in range(20):  # longer than a path may be
        os.mkdir("x" * 250, dir_fd=here)
        deeper = os.open("x" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    assert run(model, "encode", source, tmp_path / "latents") == 2
    told = capsys.readouterr()
    assert told.out == "1 encoded, 1 refused\n" and "File name too long; accepted: a folder that" in told.err


def test_a_latent_of_another_model_is_refused(model, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(pan(1)[0]).save(source / "a.png")
    assert run(model, "encode", source, tmp_path / "latents", f"--step={OLD}") == 0
    Image.fromarray(pan(1)[0]).save(source / "b.png")
    for action, other in (
        ("encode", [source, tmp_path / "latents"]),
        ("decode", [tmp_path / "latents", tmp_path / "out"]),
    ):
        capsys.readouterr()
        assert run(model, action, *other) == 2
        told = capsys.readouterr()
        assert re.search(r"a\.png\.latent: a latent of the model [0-9a-f]{16}; accepted: of ", told.err)
        assert told.out == f"1 {action}d, 1 refused\n"
    assert run(model, "decode", tmp_path / "latents" / "a.png.latent", tmp_path / "out", f"--step={OLD}") == 0
    capsys.readouterr()
    assert (
        run(model, "decode", tmp_path / "latents", tmp_path / "out") == 2
    )  # it is there, but not this one's
    told = capsys.readouterr()
    assert told.out == "0 decoded, 1 already there, 1 refused\n" and "a.png.latent: a latent of" in told.err


def test_latents_of_other_settings_are_refused(model, tmp_path, capsys):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    for flags, told in (
        (["--seed=3"], "1 encoded"),
        (["--seed=3"], "1 already there"),
        ([], "--dtype=float16 and --seed=3; accepted: another folder, or the same"),
        (["--seed=4"], "--seed=3; accepted"),
        (["--seed=3", "--dtype=float32"], "--dtype=float16 and"),
    ):
        refused = "accepted" in told or told.startswith("--")
        assert run(model, "encode", tmp_path / "a.png", f"{tmp_path}/out/", *flags) == (2 if refused else 0)
        found = capsys.readouterr()
        assert told in (found.err if refused else found.out)


def test_a_job_never_takes_its_own_results(model, tmp_path, capsys):
    source = make_folder(tmp_path / "in", clips=1)
    for _ in range(2):
        assert run(model, "reconstruct", source, source / "out") == 0
        assert run(model, "encode", source, source) == 2 - 2
    assert capsys.readouterr().out.count("4 already there") == 1
    assert run(model, "reconstruct", source, source) == 2
    assert "is what is read" in capsys.readouterr().err
    assert run(model, "reconstruct", source / "photo.jpg", source / "photo.jpg") == 2
    (source / "scan.tif.png").write_bytes((source / "photo.jpg").read_bytes())
    assert run(model, "reconstruct", source, tmp_path / "new") == 2
    assert "error: scan.tif.png: would become" in capsys.readouterr().err


def test_shards_share_a_folder(model, tmp_path, capsys):
    source = make_folder(tmp_path / "in", clips=1)
    for i in range(3):
        assert run(model, "encode", source, tmp_path / "latents", f"--shard={i}/3") == 0
    assert capsys.readouterr().out == "2 encoded\n1 encoded\n1 encoded\n"
    assert len(names(tmp_path / "latents")) == 4
    (source / "scan.tif.png").write_bytes((source / "photo.jpg").read_bytes())
    codes = [run(model, "reconstruct", source, tmp_path / "out", f"--shard={i}/2") for i in range(2)]
    assert sorted(codes) == [0, 2]  # one name for two files, which are of different shards


def test_a_seed_samples_and_can_be_repeated(model, tmp_path):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    found = {}
    for name, flags in (("mean", []), ("3", ["--seed=3"]), ("3 again", ["--seed=3"]), ("4", ["--seed=4"])):
        assert run(model, "encode", tmp_path / "a.png", tmp_path / "a.latent", *flags) == 0
        found[name] = load_file(tmp_path / "a.latent")["latent"]
    np.testing.assert_array_equal(found["3"], found["3 again"])
    assert min(np.abs(found[a] - found["3"]).mean() for a in ("mean", "4")) > 1e-2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["encode", "nowhere", "x.latent"], "nowhere: no such file or folder"),
        (["encode", "a.png", "x.mp4"], "x.mp4; accepted: .* a name in .latent"),
        (["decode", "a.png", "x.mp4"], "a.png: no latent file"),
        (["decode", "a.png", "x.gif"], "x.gif; accepted: .*.png, .*.mp4"),
        (["encode", "a.png", "no/where/x.latent"], "no such folder"),
        (["encode", "empty", "out"], "holds nothing to encode"),
        (["encode", "a.png", "x.latent", "--shard=1/2"], "--shard; accepted: with a folder"),
    ],
)
def test_a_mistake_gets_one_line(model, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.fromarray(pan(1)[0]).save("a.png")
    assert run(model, *arguments) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert re.search(told, line)


# Real processes


def process(model, *arguments, **options):
    command = [sys.executable, "-m", "vaejax.codec", *map(str, arguments), f"--model={model}"]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    root = pathlib.Path(__file__).parent.parent
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, **options)


def test_pipes_carry_files(model, codec, tmp_path):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    path = write_clip(tmp_path / "clip.mp4", pan(7), NTSC)
    with process(model, "encode", "-", "-", **pipes) as one:
        latent, told = one.communicate(path.read_bytes())
    assert one.returncode == 0 and b"1 encoded" in told
    with process(model, "decode", "-", "-", **pipes) as other:
        clip, _ = other.communicate(latent)
    (tmp_path / "back.mp4").write_bytes(clip)
    times, size, rate = shown(tmp_path / "back.mp4")
    assert (len(times), size, rate) == (7, (32, 48), NTSC)
    with process(model, "decode", "-", "-", **pipes) as other:
        nothing, told = other.communicate(b"no latent")
    assert other.returncode == 2 and not nothing and b"stdin: no latent file" in told


def test_a_stdout_that_is_closed_or_full_gets_no_traceback(model, tmp_path):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    jobs = [process(model, "encode", tmp_path / "a.png", "-", stdout=out) for out in (writer, full)]
    told = [job.communicate()[1].decode() for job in jobs]
    os.close(writer)
    os.close(full)
    assert [job.returncode for job in jobs] == [1, 2]
    assert not any(word in text for text in told for word in ("Traceback", "Exception"))
    assert "error" not in told[0]
    assert "error: stdout: No space left on device; accepted: one that can be written\n" in told[1]


def begun(job, folder):
    """Waits until a job writes into a folder."""
    while job.poll() is None and not list(folder.glob("*.part")):
        time.sleep(0.005)
    assert job.poll() is None


def clips(folder, count, length):
    folder.mkdir()
    for i in range(count):
        write_clip(folder / f"{i:02}.mp4", pan(length + i, 48, 64))
    return folder


@pytest.mark.slow
def test_two_jobs_at_once_leave_each_other_alone(model, tmp_path):
    source, out = clips(tmp_path / "in", 3, 9), tmp_path / "out"
    with process(model, "reconstruct", source, out) as one:
        begun(one, out)
        one.send_signal(signal.SIGSTOP)
        assert run(model, "reconstruct", source, out) == 0
        one.send_signal(signal.SIGCONT)
        _, told = one.communicate()
    assert one.returncode == 0, told
    assert run(model, "reconstruct", source, tmp_path / "whole") == 0
    assert names(out) == names(tmp_path / "whole")
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_ends_in_one_line_at_any_moment(model, tmp_path):
    source, out = clips(tmp_path / "in", 6, 60), tmp_path / "out"

    def imports(library):
        def wait(job):
            while job.poll() is None and library not in pathlib.Path(f"/proc/{job.pid}/maps").read_text():
                time.sleep(0.005)

        return wait

    moments = [imports("_multiarray_umath"), imports("jaxlib"), lambda job: begun(job, out)]
    for wait in moments:
        job = process(model, "reconstruct", source, out)
        wait(job)
        job.send_signal(signal.SIGINT)
        told = job.communicate()[1].decode()
        assert job.returncode == 130, told
        assert told.endswith("stopped; the same command goes on\n")
        assert not any(word in told for word in ("Traceback", "Exception", "terminate", "error"))
        assert not out.exists() or not list(out.glob(".*"))


@pytest.mark.slow
def test_killing_a_job_tears_nothing_and_it_goes_on(model, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for i in range(12):
        write_clip(source / f"{i:02}.mp4", pan(9 + i, 48, 64))
    assert run(model, "reconstruct", source, tmp_path / "whole") == 0
    out, draw, cut_short = tmp_path / "out", random.Random(0), 0
    for _ in range(4):
        before = len(names(out)) if out.exists() else 0
        job = process(model, "reconstruct", source, out)
        while job.poll() is None and len(names(out) if out.exists() else ()) <= before:
            time.sleep(0.01)  # until it has begun to write
        time.sleep(draw.uniform(0, 0.7))
        job.send_signal(signal.SIGKILL)
        job.communicate()
        left = [name for name in names(out) if name.endswith(".part")]
        cut_short += bool(left)
        for name in set(names(out)) - set(left):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert cut_short
    assert run(model, "reconstruct", source, out) == 0
    assert names(out) == names(tmp_path / "whole")
    for name in names(out):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_memory_does_not_grow_with_a_clip(model, tmp_path):
    def peak(seconds):
        path = write_clip(tmp_path / f"{seconds}.mp4", (pan(25, 128, 128) * seconds), 25)
        job = process(model, "encode", path, tmp_path / f"{seconds}.latent")
        job.stderr.read()
        _, status, used = os.wait4(job.pid, 0)
        assert status == 0
        return used.ru_maxrss

    peak(10)  # compiles
    assert peak(180) < 1.2 * peak(10)
