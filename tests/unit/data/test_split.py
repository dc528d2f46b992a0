"""The split of a file, once made, stays for the run, and a file counts once, however it is reached."""

import math
import os
import random
import shutil

import pyarrow as pa
import pytest
from PIL import Image

from vaejax.config.schema import defaults
from vaejax.data.sources import open_sources
from vaejax.data.split import Split
from vaejax.errors import InputError

TRAINED, HELD_OUT = math.inf, 0.0


def index(names, unreadable=()):
    """The index of a folder: clips of 10 s and photos, by the names' endings."""
    rows = [
        {
            "path": name,
            "frames": 240 if name.endswith(".mp4") else 1,
            "duration": 10.0 if name.endswith(".mp4") else 0.0,
            "error": "broken" if name in unreadable else None,
        }
        for name in names
    ]
    types = (
        ("path", pa.string()),
        ("frames", pa.int32()),
        ("duration", pa.float64()),
        ("error", pa.string()),
    )
    return pa.Table.from_pylist(rows, pa.schema(types))


def photos(count, first=0):
    return [f"p{i}.jpg" for i in range(first, first + count)]


def clips(count, first=0):
    return [f"c{i}.mp4" for i in range(first, first + count)]


@pytest.fixture
def start(tmp_path):
    """Starts the same run again, with {folder: names of its files}; returns the splits and the report."""

    def start(folders, holdout=0.1, unreadable=(), run="run"):
        split = Split.read(tmp_path / run)
        split.locate(list(folders))
        made = [split.divide(folder, index(names, unreadable), holdout) for folder, names in folders.items()]
        split.write(tmp_path / run)
        return made, split.report()

    return start


def test_the_first_split_is_that_of_earlier_versions(start):
    """The names were computed by the version before this file existed."""
    ((split,), report) = start({"/a": photos(40) + clips(12)})
    assert report == []
    assert {name for name, time in split.items() if time == HELD_OUT} == {
        "p13.jpg",
        "p16.jpg",
        "p3.jpg",
        "c10.mp4",
    }
    assert all(time in (TRAINED, HELD_OUT) for time in split.values())
    ((split,), _) = start({"/b": photos(3) + clips(9)}, run="other")
    assert split == dict.fromkeys(photos(3), TRAINED) | {"p0.jpg": HELD_OUT} | dict.fromkeys(clips(9), 8.0)


def test_a_folder_that_grows_from_few_clips_and_photos_to_many_moves_none(start):
    ((first,), _) = start({"/a": photos(3) + clips(9)})
    ((second,), report) = start({"/a": photos(5) + clips(12)})
    assert {name: second[name] for name in first} == first
    assert all(second[name] == 8.0 for name in clips(3, first=9))  # a run that cuts clips goes on doing so
    assert second["p3.jpg"] == HELD_OUT and second["p4.jpg"] == TRAINED  # by their hashes, .096 and .141
    assert report == [
        "media: 2 photos and 3 clips are new: 1 for training, 1 held out, the last fifth of 3 clips held out"
    ]
    ((third,), report) = start({"/a": photos(5) + clips(12)})
    assert third == second and report == []


def test_a_run_that_holds_out_whole_clips_cuts_none_when_clips_are_deleted(start):
    ((first,), _) = start({"/a": clips(12)})
    kept = ["c1.mp4", "c2.mp4", "c3.mp4", "c10.mp4"]
    ((second,), report) = start({"/a": [*kept, "c13.mp4"]})
    assert second == {name: first[name] for name in kept} | {"c13.mp4": TRAINED}
    assert report == ["media: 1 clip is new: 1 for training; 8 files are gone or unreadable"]


@pytest.mark.parametrize("begin, seams", [(8, {8.0}), (60, set())], ids=["few clips", "many clips"])
def test_no_file_changes_sides_while_a_folder_grows_shrinks_and_moves(start, begin, seams):
    """Files come and go at random; those that return, or could not be read for a while, keep their sides."""
    chosen = random.Random(0)
    names, sides = photos(40) + clips(30), {}
    for attempt in range(20):
        present = chosen.sample(names, chosen.randrange(20, 60) if attempt else begin)
        unreadable = chosen.sample(present, len(present) // 4)
        folder = "/a" if attempt < 10 else "/moved"
        ((split,), _) = start(
            {folder: present}, holdout=chosen.choice([0.02, 0.1, 0.3]), unreadable=unreadable
        )
        assert split.keys() == set(present) - set(unreadable)
        for name, time in split.items():
            sides.setdefault(name, set()).add(time)
    assert all(len(times) == 1 for times in sides.values()), sides
    assert set.union(*sides.values()) == {HELD_OUT, TRAINED} | seams


def test_a_new_folder_in_front_of_the_first_and_a_moved_one_move_no_file(start):
    ((first,), _) = start({"/a": photos(3)})
    ((_, again), report) = start({"/new": photos(20), "/a": photos(8)})
    assert {name: again[name] for name in first} == first
    assert report == ["media: 25 photos are new: 21 for training, 4 held out"]
    ((_, moved), report) = start({"/new": photos(20), "/elsewhere/a": photos(7)})
    assert {name: again[name] for name in photos(7)} == moved
    assert report == ["media: 1 file is gone or unreadable"]
    ((_, back), _) = start({"/new": photos(20), "/elsewhere/a": photos(8)})
    assert back == again


def test_the_split_holds_in_a_folder_above_or_below_the_first(start):
    ((first,), _) = start({"/a/sub": photos(3)})
    ((above,), _) = start({"/a": [f"sub/{name}" for name in photos(30)]})
    assert {name: above[f"sub/{name}"] for name in first} == first
    ((below,), _) = start({"/a/sub": photos(30)})
    assert below == {name.removeprefix("sub/"): time for name, time in above.items()}


def test_a_split_of_the_run_to_start_from_keeps_what_both_have_and_reports_nothing(start, tmp_path):
    ((first,), _) = start({"/a": photos(3)})
    split = Split.read(tmp_path / "run", resumed=False)
    split.locate(["/a"])
    second = split.divide("/a", index([*photos(2), "p9.jpg"]), 0.1)
    assert split.report() == []
    assert second == {"p0.jpg": first["p0.jpg"], "p1.jpg": first["p1.jpg"], "p9.jpg": TRAINED}
    other = Split.read(tmp_path / "run", resumed=False)  # files of the same names elsewhere are other files
    other.locate(["/elsewhere"])
    assert other.divide("/elsewhere", index(["p0.jpg", "p4.jpg", "p3.jpg"]), 0.1)["p0.jpg"] == TRAINED


def test_holdout_0_holds_out_nothing_new(start):
    ((first,), _) = start({"/a": photos(3) + clips(2)})
    ((second,), _) = start({"/a": photos(9) + clips(4)}, holdout=0.0)
    assert second == dict.fromkeys(photos(9) + clips(4), TRAINED) | first


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "run").write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match=r"run: damaged; accepted: the file that the run wrote, or no file"):
        Split.read(tmp_path / "run")


@pytest.fixture
def tree(tmp_path):
    """Six photos in A, three of them in A/sub; A/z.png links to one of them and A/linked to the folder."""
    folder = tmp_path / "A"
    (folder / "sub").mkdir(parents=True)
    for i in range(6):
        place = folder / "sub" if i % 2 else folder
        Image.new("RGB", (48, 40), (40 * i, 0, 0)).save(place / f"{i}.png")
    os.symlink(folder / "sub" / "1.png", folder / "z.png")
    shutil.copy(folder / "0.png", folder / "copy.png")  # a file of its own
    os.symlink(folder / "0.png", tmp_path / "outside.png")
    return folder


def rows(sources):
    """(real path, whether it is held out) of every row."""
    tables = [source.table.select(["path", "held_out"]).to_pylist() for source in sources]
    return [[(os.path.realpath(row["path"]), row["held_out"]) for row in table] for table in tables]


@pytest.mark.parametrize(
    "order", [("{A}", "{A}/sub"), pytest.param(("{A}/sub", "{A}"), marks=pytest.mark.variants)]
)
def test_a_file_counts_once_in_overlapping_folders_and_sources(tree, order):
    folders = [folder.format(A=tree) for folder in order]
    data = defaults().data
    data.holdout, data.media = 0.4, ",".join(folders)
    split = Split()
    (together,) = rows(open_sources(data, split))
    assert len(together) == len({path for path, _ in together}) == 7
    assert split.report() == ["media: 4 files with several paths or in overlapping folders count once"]
    data.media, data.sources = "", {f"{i}": {"kind": "media", "path": f} for i, f in enumerate(folders)}
    first, second = rows(open_sources(data))
    assert first + second == together and len(first) == (7 if order[0] == "{A}" else 3)
