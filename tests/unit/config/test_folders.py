"""Folders can be given as text or as a list, on the command line, in a file and in Python."""

import pathlib
import subprocess
import sys

import pytest

from vaejax.config import check, from_saved
from vaejax.config.folders import folder_list
from vaejax.configs import demo
from vaejax.errors import InputError

ROOT = pathlib.Path(__file__).parents[3]
LIST = ["a,b", "c"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a folder whose name has a comma, and one whose name looks like a list."""
    for name in ("a,b", "['x']", "c"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("value", "folders"),
    [
        ("c", ["c"]),
        ("c, d", ["c", "d"]),
        ("a,b", ["a,b"]),  # is a folder
        ("b,a", ["b", "a"]),
        ("a,b,c", ["a", "b", "c"]),
        (LIST, LIST),
        (("a,b", "~/c"), ["a,b", "/home/me/c"]),
        ("['a,b', 'c']", LIST),
        ('("a,b", "c")', LIST),
        ("['x']", ["['x']"]),  # is a folder
        ("['y]", ["['y]"]),
        ("[1, 2]", ["[1", "2]"]),
        ("~/c", ["/home/me/c"]),
        ("", []),
        ((), []),
    ],
)
def test_text_is_split_at_commas_unless_it_is_a_folder_or_a_list(here, value, folders):
    assert folder_list(value) == folders


def test_a_list_survives_a_configuration_and_its_json():
    config = demo.get_config()
    config.data.media = LIST
    checked = check(config)
    assert checked.data.media == tuple(LIST)
    assert from_saved(checked.to_dict()).data.media == tuple(LIST)
    assert from_saved({"model": {}, "data": {"media": LIST}}).data.media == tuple(LIST)  # config.json
    with pytest.raises(TypeError):
        config.data.media = 3
    values = checked.to_dict()
    values["data"]["media"] = ["a", 3]
    with pytest.raises(InputError, match=r"data\.media = \('a', 3\); accepted: FOLDER\[,FOLDER\], or a list"):
        check(values)


def test_the_command_line_takes_text_and_lists(tmp_path):
    """Also digits, which are text, a value after a space, and a flag that replaces the list of a file."""
    (tmp_path / "file.py").write_text(
        "from vaejax.config import defaults\n"
        "def get_config():\n"
        "    config = defaults()\n"
        f"    config.data.media = {LIST}\n"
        "    return config\n"
    )
    program = (
        "import os, sys\n"
        "from vaejax.config import flag\n"
        "from vaejax.config.folders import folder_list\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    if not os.fork():\n"
        "        sys.argv = ['x', '--config=file.py', *eval(line)]\n"
        "        flag.parse(sys.argv)\n"
        "        print(folder_list(flag.CONFIG.value.data.media), flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    given = {
        (): LIST,
        ("--config.data.media=2024_01",): ["2024_01"],
        ("--config.data.media", "A,B"): ["A", "B"],
        ("--config.data.media=['x,y', 'z']",): ["x,y", "z"],
        ("--config.data.media=('x,y',)",): ["x,y"],
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="".join(f"{arguments!r}\n" for arguments in given),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines() == [str(folders) for folders in given.values()], done.stderr
