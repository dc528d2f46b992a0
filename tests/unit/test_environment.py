"""Named pipes among the files, no home folder, and another locale change nothing."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading

import pytest
from PIL import Image

from tests.support import codec_run
from tests.support.codec_run import pan, run
from tests.support.media_files import write_clip
from vaejax.data import index

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return codec_run.write(tmp_path_factory.mktemp("run"))


@contextlib.contextmanager
def pipe(path):
    """A named pipe; a reader that waits for it gets no bytes, so that the test fails instead of hanging."""
    os.mkfifo(path)
    done = threading.Event()

    def end_readers():
        while not done.wait(0.05):
            with contextlib.suppress(OSError):  # there is no reader
                os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    thread = threading.Thread(target=end_readers)
    thread.start()
    try:
        yield path
    finally:
        done.set()
        thread.join()


def errors(capsys):
    return [
        line.partition("error: ")[2] for line in capsys.readouterr().err.splitlines() if "error: " in line
    ]


def test_pipes_and_sockets_in_a_folder_are_refused_by_name(model, tmp_path, capsys):
    folder, latents = tmp_path / "in", tmp_path / "latents"
    folder.mkdir()
    Image.fromarray(pan(1)[0]).save(folder / "a.png")
    os.symlink("/dev/zero", folder / "z.png")
    with pipe(folder / "p.png"), socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "s.mp4"))
        for action in ("encode", "reconstruct"):
            assert run(model, action, folder, tmp_path / action) == 2
            assert sorted(errors(capsys)) == [
                "p.png: a named pipe; accepted: a file",
                "s.mp4: a socket; accepted: a file",
                "z.png: a device; accepted: a file",
            ]
    (tmp_path / "encode").rename(latents)
    with pipe(latents / "p.latent"):
        assert run(model, "decode", latents, tmp_path / "back") == 2
        assert errors(capsys) == ["p.latent: a named pipe; accepted: a file"]
    assert [path.name for path in (tmp_path / "back").iterdir()] == ["a.png"]


def test_a_pipe_as_an_argument_or_an_output_is_refused_in_one_line(model, tmp_path, capsys):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    with pipe(tmp_path / "p.png") as png, pipe(tmp_path / "p.latent") as latent:
        os.symlink(latent, tmp_path / "out" / "a.png.latent")
        for arguments, told in (
            (["encode", png, "-"], f"IN = {png}: a named pipe; accepted: a file, a folder, or - for stdin"),
            (["decode", latent, "-"], f"IN = {latent}: a named pipe; accepted: a file, a folder, or - for"),
            (
                ["encode", tmp_path / "a.png", latent],
                f"OUT = {latent}: a named pipe; accepted: a file, or - for",
            ),
            (["encode", tmp_path / "a.png", tmp_path / "out"], "already there, but not written by vaejax"),
        ):
            assert run(model, *arguments) == 2
            (line,) = errors(capsys)
            assert told in line


def test_an_index_passes_over_pipes(tmp_path):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    with pipe(tmp_path / "p.mp4"), pipe(tmp_path / index.INDEX_FILE):
        table = index.load_or_build(tmp_path, 1, progress=False)
    assert table["path"].to_pylist() == ["a.png"]
    assert index.load_or_build(tmp_path, 1, progress=False).equals(table)


def test_a_home_folder_is_expanded_everywhere(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "in").mkdir()
    Image.fromarray(pan(1)[0]).save(tmp_path / "in" / "a.png")
    assert run(model, "encode", "~/in", "~/latents") == 0
    assert run(model, "decode", "~/latents/a.png.latent", "~/back.png") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.png", "in", "latents"]


# Neither $HOME nor the database of users names a home folder, as for an unknown user in a container.
HOMELESS = """
import os, pwd, runpy, sys
os.environ.pop("HOME", None), os.environ.pop("XDG_CACHE_HOME", None)
def getpwuid(uid):
    raise KeyError(uid)
pwd.getpwuid = getpwuid
"""
USES = """
from vaejax import cli, files
from vaejax.errors import InputError
from vaejax.runtime import cache
for name in ("", "~/kept"):  # XDG_CACHE_HOME must be absolute
    os.environ["XDG_CACHE_HOME"] = name
    (cache.folder() / "index").mkdir(parents=True, exist_ok=True)
for use in (files.expand_home, cli.made_folder, cache.share):
    try:
        use("~/runs")
    except InputError as error:
        print(error)
print(files.expand_home("runs/~"), files.expand_home("~nobody-has-this-name/x"))
"""


def homeless(script, cwd, *arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", HOMELESS + script, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_without_a_home_folder_none_called_tilde_appears(tmp_path):
    done = homeless(USES, tmp_path)
    refused = "~/runs: no home folder is known; accepted: a path without ~, or $HOME set"
    assert done.stdout.splitlines() == [refused] * 3 + ["runs/~ ~nobody-has-this-name/x"], done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.variants
def test_a_command_without_a_home_folder_works(model, tmp_path):
    Image.fromarray(pan(1)[0]).save(tmp_path / "a.png")
    script = "sys.argv[0] = 'codec'; runpy.run_module('vaejax.codec', run_name='__main__', alter_sys=True)"
    done = homeless(script, tmp_path, "encode", "a.png", "a.latent", f"--model={model}")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.latent", "a.png"]


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PLAIN_C = {"LC_ALL": "C"}


def command(cwd, locale, *arguments):
    """Runs a module in a locale; its stdout without the duration."""
    removed = ("LC_ALL", "LANG", "LC_CTYPE", "PYTHONUTF8", "PYTHONCOERCECLOCALE", "PYTHONIOENCODING")
    environment = {name: value for name, value in os.environ.items() if name not in removed}
    environment |= locale | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=cwd, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    return [line for line in done.stdout.decode().splitlines() if not line.startswith("done in")]


@pytest.fixture
def foreign(tmp_path):
    folder = tmp_path / "Fotos für Zoë" / "日本"
    folder.mkdir(parents=True)
    Image.fromarray(pan(1)[0]).save(folder / "é.png")
    write_clip(folder / "ñ.mp4", pan(3))
    return folder.parent


def test_an_index_is_the_same_in_another_locale(tmp_path, foreign):
    found = []
    for locale in ({"LC_ALL": "C.UTF-8"}, ASCII):
        (foreign / index.INDEX_FILE).unlink(missing_ok=True)
        told = command(tmp_path, locale, "vaejax.data.index", foreign.name, "--workers=1")
        found.append((told, (foreign / index.INDEX_FILE).read_bytes()))
    assert found[0] == found[1]
    table = index.load_or_build(foreign, 1, progress=False)
    assert sorted(table["path"].to_pylist()) == ["日本/é.png", "日本/ñ.mp4"]
    assert not any(table["error"].to_pylist())


@pytest.mark.variants
def test_latents_are_the_same_in_another_locale(model, tmp_path, foreign):
    named = tmp_path / "Modèle"
    pathlib.Path(model).rename(named)
    found = []
    try:
        for locale in ({"LC_ALL": "C.UTF-8"}, PLAIN_C, ASCII):
            out = tmp_path / str(len(found)) / "Köpfe"
            command(tmp_path, locale, "vaejax.codec", "encode", foreign, out, f"--model={named}", "--seed=3")
            found.append({path.relative_to(out): path.read_bytes() for path in out.rglob("*.latent")})
    finally:
        named.rename(model)
    assert found[0] == found[1] == found[2]
    assert {path.name for path in found[0]} == {"é.png.latent", "ñ.mp4.latent"}
