"""A repeated command keeps an output only if the same source, model and settings made it."""

import json
import os
import re
import shutil
import struct

import av
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.support import codec_run
from tests.support.codec_run import OLD, pan, run, shown
from tests.support.media_files import write_clip
from vaejax.codec import media_writer, origin
from vaejax.data import media


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pan(1)[0]).save(folder / "a.bmp")
    Image.fromarray(pan(1)[0]).save(folder / "b.png")
    write_clip(folder / "c.mp4", pan(5))
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def done(capsys):
    """The counts in the last summary, such as '1 encoded, 2 already there'."""
    return capsys.readouterr().out.splitlines()[0].partition(" in ")[0]


def test_a_replaced_source_is_encoded_and_reconstructed_again(model, source, tmp_path, capsys):
    for action, word in (("encode", "encoded"), ("reconstruct", "reconstructed")):
        out, fresh = tmp_path / action, tmp_path / f"fresh {action}"
        Image.fromarray(pan(1)[0]).save(source / "a.bmp")
        assert run(model, action, source, out) == 0
        kept, before = contents(out), os.stat(source / "a.bmp")
        Image.fromarray(pan(1)[0][::-1]).save(source / "a.bmp")
        os.utime(source / "a.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert os.stat(source / "a.bmp").st_size == before.st_size
        capsys.readouterr()
        assert run(model, action, source, out) == 0
        told = capsys.readouterr()
        assert told.out.startswith(f"1 {word}, 2 already there in ")
        assert f"a.bmp: {word} again, because its source has changed" in told.err
        assert run(model, action, source, fresh) == 0
        assert contents(out) == contents(fresh) != kept


def test_folders_may_be_moved_and_copied(model, source, tmp_path, capsys):
    assert run(model, "encode", source, tmp_path / "latents") == 0
    assert run(model, "decode", tmp_path / "latents", tmp_path / "back") == 0
    for name in ("in", "latents", "back"):
        shutil.copytree(tmp_path / name, tmp_path / "moved" / name, copy_function=shutil.copyfile)
    folder = tmp_path / "moved"
    for action, source, target in (("encode", "in", "latents"), ("decode", "latents", "back")):
        capsys.readouterr()
        assert run(model, action, folder / source, folder / target) == 0
        assert done(capsys) == f"0 {action}d, 3 already there"
    assert run(model, "reconstruct", folder / "in", folder / "back") == 0
    assert done(capsys) == "0 reconstructed, 3 already there"


def test_pictures_of_another_model_are_decoded_again(model, source, tmp_path, capsys):
    for step in (OLD, 7):
        latents = tmp_path / f"latents of {step}"
        assert run(model, "encode", source, latents, f"--step={step}") == 0
        capsys.readouterr()
        assert run(model, "decode", latents, tmp_path / "back", f"--step={step}") == 0
        assert done(capsys) == "3 decoded"
        assert run(model, "decode", latents, tmp_path / f"{step}", f"--step={step}") == 0
    assert contents(tmp_path / "back") == contents(tmp_path / "7") != contents(tmp_path / f"{OLD}")


def test_latents_that_were_changed_are_decoded_again(model, source, tmp_path, capsys):
    path, out = tmp_path / "b.png.latent", tmp_path / "out"
    out.mkdir()
    assert run(model, "encode", source / "b.png", path) == 0
    assert run(model, "decode", path, out) == 0
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    for shift in (0.5, 1):
        save_file(tensors | {"latent": tensors["latent"] + np.float16(shift)}, path, metadata)
        for made in ("1 decoded", "0 decoded, 1 already there"):
            before = (out / "b.png").read_bytes()
            capsys.readouterr()
            assert run(model, "decode", path, out) == 0
            assert done(capsys) == made
            assert ((out / "b.png").read_bytes() == before) == made.startswith("0")


@pytest.mark.parametrize(
    ("action", "flag", "made", "told"),
    [
        ("decode", "--crf=30", 1, "c.mp4.latent: decoded again, because crf was 16, now 30"),
        pytest.param("decode", "--seed=3", 0, "", marks=pytest.mark.variants),
        pytest.param("reconstruct", "--seed=3", 3, "seed was none, now 3", marks=pytest.mark.variants),
        pytest.param("reconstruct", "--crf=30", 1, "c.mp4: reconstructed", marks=pytest.mark.variants),
    ],
)
def test_changed_settings_make_what_they_change_again(
    model, source, tmp_path, capsys, action, flag, made, told
):
    if action == "decode":
        assert run(model, "encode", source, tmp_path / "latents") == 0
        source = tmp_path / "latents"
    assert run(model, action, source, tmp_path / "out") == 0
    for wanted in (made, 0):
        capsys.readouterr()
        assert run(model, action, source, tmp_path / "out", flag) == 0
        found = capsys.readouterr()
        assert found.out.startswith(f"{wanted} ")
        assert not wanted or told in found.err
    assert run(model, action, source, tmp_path / "fresh", flag) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


@pytest.mark.variants
def test_latents_encoded_in_other_tiles_are_refused(model, source, tmp_path, capsys):
    tiles = ["--tile=32", "--overlap=8"]
    assert run(model, "encode", source / "b.png", f"{tmp_path}/out/", *tiles) == 0
    before = contents(tmp_path / "out")
    for flags, known in ((["--tile=64", "--overlap=8"], "tile 32"), ([], "overlap 8 and tile 32")):
        capsys.readouterr()
        assert run(model, "encode", source / "b.png", f"{tmp_path}/out/", *flags) == 2
        told = capsys.readouterr()
        assert f"with --dtype=float16 and no --seed and {known}; accepted" in told.err
        assert "next: another OUT, or the --model and flags that encoded 1 of the files before" in told.out
    assert run(model, "encode", source / "b.png", f"{tmp_path}/out/", *tiles) == 0
    assert contents(tmp_path / "out") == before


def without_record(path):
    """Writes an output as earlier versions did."""
    if path.suffix == ".latent":
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        del header["__metadata__"]["origin"]
        path.write_bytes(data[:8] + json.dumps(header).encode().ljust(size) + data[8 + size :])
    elif path.suffix == ".mp4":
        path.rename(other := path.with_suffix(".tmp"))
        with av.open(str(other)) as clip, av.open(str(path), "w", options={"fflags": "+bitexact"}) as out:
            stream = out.add_stream_from_template(clip.streams.video[0])
            for packet in clip.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
        other.unlink()
    else:
        with Image.open(path) as photo:
            photo.load()
            photo.info.clear()
            photo.save(path)


def test_outputs_of_earlier_versions_are_kept_with_one_line(model, source, tmp_path, capsys):
    assert run(model, "encode", source, tmp_path / "latents") == 0
    assert run(model, "decode", tmp_path / "latents", tmp_path / "back") == 0
    for path in [*(tmp_path / "latents").iterdir(), *(tmp_path / "back").iterdir()]:
        without_record(path)
    before = contents(tmp_path / "latents"), contents(tmp_path / "back")
    for action, where in (
        ("encode", [source, tmp_path / "latents"]),
        ("decode", [tmp_path / "latents", tmp_path / "back"]),
        ("reconstruct", [source, tmp_path / "back"]),
    ):
        capsys.readouterr()
        assert run(model, action, *where) == 0
        found = capsys.readouterr()
        assert found.out.startswith("0 ") and "3 already there" in found.out
        assert found.err.count("3 already there from an earlier version of vaejax, without") == 1
    assert (contents(tmp_path / "latents"), contents(tmp_path / "back")) == before
    # The header of any version names model, dtype and seed.
    assert run(model, "encode", source, tmp_path / "latents", "--seed=1") == 2
    assert "with --dtype=float16 and no --seed; accepted: the same flags" in capsys.readouterr().err


def test_files_that_vaejax_did_not_write_are_refused_and_left_alone(model, source, tmp_path, capsys):
    out, exif = tmp_path / "out", Image.Exif()
    out.mkdir()
    assert run(model, "encode", source, tmp_path / "latents") == 0
    (out / "a.bmp.png").write_text("my notes")
    exif[0x010F] = "a camera's maker"
    Image.fromarray(pan(1)[0]).save(out / "b.png", exif=exif)
    write_clip(out / "c.mp4", pan(5), title="my holidays")
    foreign = contents(out)
    for action, of in (("decode", tmp_path / "latents"), ("reconstruct", source)):
        capsys.readouterr()
        assert run(model, action, of, out) == 2
        told = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
        assert len(told) == 3
        assert all("already there, but not written by vaejax; accepted: another OUT" in line for line in told)
    Image.fromarray(pan(1, 64, 64)[0]).save(out / "b.png")  # not the size of the latent
    foreign["b.png"] = (out / "b.png").read_bytes()
    assert run(model, "decode", tmp_path / "latents", out) == 2
    assert contents(out) == foreign
    (tmp_path / "latents" / "a.bmp.latent").write_text("my notes")
    assert run(model, "encode", source, tmp_path / "latents") == 2
    assert (tmp_path / "latents" / "a.bmp.latent").read_text() == "my notes"


RECORD = {"model": "0123456789abcdef", "crf": 16, "latent": {"source": "fedcba9876543210", "seed": None}}


@pytest.mark.parametrize("extension", list(media_writer.PHOTOS))
def test_a_photo_carries_its_record_and_looks_the_same(tmp_path, extension):
    paths = [tmp_path / f"{name}{extension}" for name in ("with", "without")]
    for path, exif in zip(paths, (origin.exif_of(RECORD), None), strict=True):
        with open(path, "w+b") as file:
            media_writer.write_photo(file, extension, pan(1)[0], exif)
    with Image.open(paths[0]) as one, Image.open(paths[1]) as other:
        assert one.getexif()[0x0131].startswith("vaejax ") and one.mode == other.mode
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    one, other = (media.read(path, "image", frames=1, height=32, width=48) for path in paths)
    np.testing.assert_array_equal(one, other)
    assert [origin.read(path, (32, 48)) for path in paths] == [RECORD, {}]


@pytest.mark.parametrize("extension", list(media_writer.CLIPS))
def test_a_clip_carries_its_record_and_plays_the_same(tmp_path, extension):
    paths = [tmp_path / f"{name}{extension}" for name in ("with", "without")]
    times = [i / float(codec_run.NTSC) for i in range(3)]
    for path, comment in zip(paths, (origin.text_of(RECORD), ""), strict=True):
        with open(path, "w+b") as file:
            media_writer.write_clip(
                file,
                extension,
                [np.stack(pan(3))],
                (32, 48),
                times,
                0.12,
                codec_run.NTSC,
                True,
                20,
                comment=comment,
            )
    found = [(*shown(path), media.probe(path, "video")["duration"]) for path in paths]
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
    frames = [media.read(path, "video", frames=3, height=32, width=48) for path in paths]
    np.testing.assert_array_equal(*frames)
    assert [origin.read(path, (32, 48)) for path in paths] == [RECORD, {}]


def test_a_latent_file_says_what_it_was_made_from(model, source, tmp_path):
    assert run(model, "encode", source, tmp_path / "latents") == 0
    path = tmp_path / "latents" / "a.bmp.latent"
    record = origin.read(path)
    wanted = {"dtype": "float16", "seed": None, "compute": "float32", "tile": 0, "overlap": None}
    assert record.items() >= wanted.items() and {"model", "source"} <= record.keys()
    without_record(path)
    assert origin.read(path).keys() == {"model", "dtype", "seed"}
    assert run(model, "decode", path, tmp_path / "a.png") == 0
    assert re.fullmatch("[0-9a-f]{16}", origin.read(tmp_path / "a.png")["latent"])
    assert set(load_file(path)) == {"latent", "time"} | (set(load_file(path)) & {"filler"})
