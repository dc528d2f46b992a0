"""python -m vaejax.codec over folders and pipes: what it does again, never tears, and refuses by name."""

import io
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.support import codec_run, media_files
from tests.support.codec_run import NTSC, OLD, pan, run, shown
from tests.support.media_files import corners, write_clip
from vaejax.data import media


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


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
    done, following = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"5 encoded in [0-9.]+ s: {tmp_path}/latents", done)
    assert following == f"next: python -m vaejax.codec decode {tmp_path}/latents DECODED/ --model={model}"
    assert names(tmp_path / "latents") == [f"{name}.latent" for name in MADE]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").rglob("*.latent")}
    gone = tmp_path / "latents" / "sub" / "clip0.mp4.latent"
    gone.unlink()
    assert run(model, "encode", source, tmp_path / "latents", "--workers=3") == 0
    assert capsys.readouterr().out.startswith("1 encoded, 4 already there in ")
    assert all(path.stat().st_mtime_ns == then for path, then in before.items() if path != gone)
    assert run(model, "decode", tmp_path / "latents", tmp_path / "out") == 0
    assert names(tmp_path / "out") == BACK
    assert run(model, "reconstruct", source, tmp_path / "again") == 0
    assert names(tmp_path / "again") == BACK
    for name in BACK:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_bad_files_are_refused_by_name_and_the_rest_is_done(model, tmp_path, capsys):
    source = make_folder(tmp_path / "in")
    for name in ("empty.mp4", "IMG.JXL", ".hidden.jxl"):
        (source / name).touch()
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
    assert told.out.startswith("6 encoded, 5 refused in ") and "only the refused files" in told.out
    assert "Traceback" not in told.err and "passed over by their endings: 1 .jxl, 1 .txt\n" in told.err
    for name, reason in {
        "empty.mp4": "",
        "text.mp4": "",
        "silent.mp4": "no video",
        "tiny.png": "12x20 .*accepted: at least 16x16",
        "cut.jpg": "[Tt]runcated",
    }.items():
        assert re.search(f"error: {name}: .*{reason}", told.err), name
    assert f"short.mp4: damaged after {count} frames, which are kept" in told.err and 1 < count < 50
    assert load_file(tmp_path / "latents" / "short.mp4.latent")["time"].shape == (count,)
    (tmp_path / "latents" / "old.avi.latent").write_bytes(b"no latent")
    assert run(model, "decode", tmp_path / "latents", tmp_path / "out") == 2
    told = capsys.readouterr()
    assert told.out.startswith("5 decoded, 1 refused in ")
    assert "error: old.avi.latent: not a latent file" in told.err
    assert "old.avi.mp4" not in names(tmp_path / "out") and len(names(tmp_path / "out")) == 5


def test_refused_files_fail_a_job_unless_it_keeps_going(model, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "latents"
    (source / "b").mkdir(parents=True)
    Image.fromarray(pan(1)[0]).save(source / "a.png")
    for name in ("z.png", "b/y.mp4"):
        (source / name).write_text("no picture")
    assert run(model, "encode", source, out) == 2
    assert "\nrefused: " not in capsys.readouterr().err
    (out / "a.png.latent").unlink()
    assert run(model, "encode", source, out, "--keep-going") == 0
    told = capsys.readouterr()
    assert told.out.startswith("1 encoded, 2 refused in ")
    assert told.err.endswith("\nrefused: b/y.mp4, z.png\n")
    assert run(model, "encode", source / "a.png", f"{out}/", "--keep-going") == 2
    told = f"--keep-going: IN = {source}/a.png is not a folder; accepted: a folder"
    assert told in capsys.readouterr().err
    (source / "z.png").unlink()
    (source / "b" / "y.mp4").unlink()
    write_clip(source / "b" / "c.mp4", pan(1))
    (out / "b").rmdir()
    (out / "b").write_text("no folder, so nothing can be written into it")
    assert run(model, "encode", source, out, "--keep-going") == 2
    assert "accepted: a writable folder" in capsys.readouterr().err


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
    assert told.out.startswith("3 decoded, 1 refused in ") and "Traceback" not in told.err
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
    assert told.out.startswith("1 encoded, 1 refused in ")
    assert "File name too long; accepted: a readable folder" in told.err


def test_a_latent_of_another_model_is_refused(model, tmp_path, capsys):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(pan(1)[0]).save(source / "a.png")
    assert run(model, "encode", source, tmp_path / "latents", f"--step={OLD}") == 0
    Image.fromarray(pan(1)[0]).save(source / "b.png")
    encoded = r"already encoded by a different model \([0-9a-f]{16}\); accepted: the same --model"
    decoded = r"latents from a different model \([0-9a-f]{16}\); accepted: latents from "
    for action, other, message in (
        ("encode", [source, tmp_path / "latents"], encoded),
        ("decode", [tmp_path / "latents", tmp_path / "out"], decoded),
    ):
        capsys.readouterr()
        assert run(model, action, *other) == 2
        told = capsys.readouterr()
        assert re.search(rf"a\.png\.latent: {message}", told.err)
        assert told.out.startswith(f"1 {action}d, 1 refused in ")
    assert run(model, "decode", tmp_path / "latents" / "a.png.latent", tmp_path / "out", f"--step={OLD}") == 0
    capsys.readouterr()
    assert (
        run(model, "decode", tmp_path / "latents", tmp_path / "out") == 2
    )  # it is there, but not this one's
    told = capsys.readouterr()
    assert told.out.startswith("0 decoded, 1 already there, 1 refused in ")
    assert "a.png.latent: latents from a different model" in told.err


def test_latents_of_other_settings_are_refused(model, tmp_path, capsys):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    for flags, told in (
        (["--seed=3"], "1 encoded"),
        (["--seed=3"], "1 already there"),
        ([], "--dtype=float16 and --seed=3; accepted: the same flags, or another OUT"),
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
    assert "the same folder as IN" in capsys.readouterr().err
    assert run(model, "reconstruct", source / "photo.jpg", source / "photo.jpg") == 2
    (source / "scan.tif.png").write_bytes((source / "photo.jpg").read_bytes())
    assert run(model, "reconstruct", source, tmp_path / "new") == 2
    assert "error: scan.tif.png: would overwrite the output of" in capsys.readouterr().err


def test_shards_share_a_folder(model, tmp_path, capsys):
    source = make_folder(tmp_path / "in", clips=1)
    for i in range(3):
        assert run(model, "encode", source, tmp_path / "latents", f"--shard={i}/3") == 0
    assert re.findall(r"\d encoded", capsys.readouterr().out) == ["2 encoded", "1 encoded", "1 encoded"]
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
        (["encode", "a.png", "x.mp4"], "OUT = x.mp4; accepted: .* a file whose name ends in .latent"),
        (["decode", "a.png", "x.mp4"], "a.png: not a latent file"),
        (["decode", "a.png", "x.gif"], "x.gif; accepted: .*.png, .*.mp4"),
        (["encode", "a.png", "no/where/x.latent"], "its folder does not exist"),
        (["encode", "empty", "out"], "contains nothing to encode"),
        (
            ["encode", "a.png", "x.latent", "--shard=1/2"],
            "--shard: IN = a.png is not a folder; accepted: a folder",
        ),
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
    root = pathlib.Path(__file__).parents[3]
    return subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.PIPE, **options)


@pytest.mark.variants
def test_pipes_carry_files(model, tmp_path, monkeypatch, capsys):
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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no latent")))
    assert run(model, "decode", "-", "-") == 2
    told = capsys.readouterr()
    assert not told.out and "stdin: not a latent file" in told.err


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
    assert "error: stdout: No space left on device; accepted: a writable stdout\n" in told[1]


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


@pytest.mark.variants
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
        assert told.endswith("stopped; run the same command again to continue\n")
        assert not any(word in told for word in ("Traceback", "Exception", "terminate", "error"))
        assert not out.exists() or not list(out.glob(".*"))


@pytest.mark.variants
def test_killing_a_job_tears_nothing_and_it_goes_on(model, tmp_path, as_the_command):
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


@pytest.mark.variants
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
