"""A large collection gives the samples of a small one, from a table in a file and without a split by file."""

import dataclasses
import os
import pickle
import random
import shutil
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vaejax.config.schema import DataConfig
from vaejax.data import index, large, mapped, pipeline
from vaejax.data import media as media_files
from vaejax.data.bucket import Bucket
from vaejax.data.index_file import SCHEMA
from vaejax.data.index_row import settled
from vaejax.data.kinds import indexed
from vaejax.data.row_set import RowSet
from vaejax.data.sampler import Sampler
from vaejax.data.sources import digest, held_out_report, open_sources, training_files
from vaejax.data.spans import from_index
from vaejax.data.split import Split, seams, split_files
from vaejax.data.split_rule import NOTHING, WHOLE, Hashes, Rule, name_hashes
from vaejax.data.table import file_numbers
from vaejax.runtime.storage import Entry

PHOTOS = Bucket(1, 16, 16, 4)
COUNT = 30


def draw(folder, first, count):
    for i in range(first, first + count):
        (folder / f"sub{i % 3}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (8 * i % 256, i // 32, 100)).save(folder / f"sub{i % 3}" / f"{i:03}.png")


@pytest.fixture
def media(tmp_path):
    """Photos of different colors."""
    draw(tmp_path / "media", 0, COUNT)
    return tmp_path / "media"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def as_large(monkeypatch):
    """Makes every collection a large one."""
    return lambda files=1: monkeypatch.setattr(indexed, "LARGE", files)


def opened(folder, splits=None, holdout=0.3, **fields):
    data = DataConfig(media=str(folder), workers=0, holdout=holdout, **fields)
    split = Split.read(splits) if splits else Split()
    (source,) = open_sources(data, split)
    if splits:
        split.write(splits)
    return source, data


def sides(source):
    """The held-out files, and the others."""
    rows = source.table.select(["relative_path", "held_out"]).to_pylist()
    return tuple({row["relative_path"] for row in rows if row["held_out"] == side} for side in (True, False))


def samples(source, data):
    trained = list(pipeline.train_samples([source], PHOTOS, data, 40, seed=0))
    return np.concatenate(trained), next(pipeline.eval_batches([source], PHOTOS, data, 20, batch=20)).frames


def test_a_large_collection_gives_the_samples_of_a_small_one(media, as_large):
    source, data = opened(media)
    expected, messages = samples(source, data), held_out_report([source], [PHOTOS], data)
    assert not source.files
    as_large()
    for _ in range(2):  # the second start opens the table of the first
        source, data = opened(media)
        assert source.files
        for found, wanted in zip(samples(source, data), expected, strict=True):
            np.testing.assert_array_equal(found, wanted)
        assert held_out_report([source], [PHOTOS], data) == messages
        assert training_files([source], [PHOTOS], data) == {"photo": len(sides(source)[1]), "clip": 0}


def test_a_start_without_changes_makes_no_index_and_any_change_is_noticed(media, as_large, monkeypatch):
    as_large()
    opened(media)
    made = []
    build = index.load_or_build
    monkeypatch.setattr(index, "load_or_build", lambda *a, **k: made.append(1) or build(*a, **k))

    def remade(**fields):
        made.clear()
        source, _ = opened(media, **fields)
        return bool(made), len(source.table)

    assert remade() == (False, COUNT)
    draw(media, COUNT, 1)
    assert [remade(), remade()] == [(True, COUNT + 1), (False, COUNT + 1)]
    (media / "sub0" / "000.png").unlink()
    assert [remade(), remade()] == [(True, COUNT), (False, COUNT)]
    os.utime(media / "sub1" / "001.png", ns=(0, 12345))
    assert [remade(), remade()] == [(True, COUNT), (False, COUNT)]
    assert [remade(scan="headers"), remade()] == [(True, COUNT), (False, COUNT)]
    for table in mapped.folder().glob("*.arrow"):
        table.unlink()
    assert [remade(), remade()] == [(True, COUNT), (False, COUNT)]


def test_a_file_that_could_not_be_opened_is_tried_again(media, as_large, monkeypatch):
    as_large()
    probe_files, photo = index.probe_files, media / "sub0" / "000.png"

    def hidden(*arguments):
        os.rename(photo, media / "elsewhere")
        yield from probe_files(*arguments)
        os.rename(media / "elsewhere", photo)

    monkeypatch.setattr(index, "probe_files", hidden)
    assert len(opened(media)[0].table) == COUNT - 1
    monkeypatch.setattr(index, "probe_files", probe_files)
    assert len(opened(media)[0].table) == COUNT


def test_a_damaged_description_of_the_tables_is_made_anew(media, as_large):
    as_large()
    opened(media)
    for text in ("", "[]", '{"state": 1}', "{"):
        for path in mapped.folder().glob("*.json"):
            path.write_text(text)
        assert len(opened(media)[0].table) == COUNT


def test_the_unreadable_files_and_the_summary_are_those_of_the_first_start(media, as_large, capfd):
    as_large()
    (media / "sub0" / "broken.png").write_bytes(b"no photo")
    first, _ = opened(media)
    said = capfd.readouterr().err
    second, _ = opened(media)
    assert first.unreadable == second.unreadable and len(second.unreadable) == 1
    assert f"{COUNT} photos, 0 clips, 1 unreadable" in said
    assert "making a table" in said and "making a table" not in (again := capfd.readouterr().err)
    assert again.strip() and again in said


def test_a_run_keeps_its_rule_when_the_folder_grows_and_moves(media, as_large, tmp_path):
    as_large()
    splits = tmp_path / "splits.parquet"
    first = sides(opened(media, splits)[0])
    assert pq.read_table(splits).to_pylist() == [
        {
            "folder": str(media),
            "path": None,
            "held_out_from": None,
            "photos_below": 0.3,
            "clips_below": None,
        }
    ]
    draw(media, COUNT, 10)
    shutil.move(media, tmp_path / "elsewhere")
    grown = sides(opened(tmp_path / "elsewhere", splits, holdout=0.9)[0])
    assert first[0] < grown[0] and first[1] < grown[1]
    new = {name: h for name in grown[0] | grown[1] if (h := name_hashes(pa.chunked_array([[name]]))[0]) < 0.3}
    assert grown[0] == new.keys()
    as_large(10**6)  # nor does the run split one by one if its folder has become small
    assert sides(opened(tmp_path / "elsewhere", splits)[0]) == grown


def test_a_run_that_splits_its_files_one_by_one_goes_on_so(media, as_large, tmp_path):
    splits = tmp_path / "splits.parquet"
    first = sides(opened(media, splits)[0])
    as_large()
    source, _ = opened(media, splits, holdout=0.9)
    assert not source.files and sides(source) == first
    assert pq.read_table(splits).column_names == ["folder", "path", "held_out_from"]


def test_a_file_of_a_large_folder_counts_once_in_overlapping_folders(media, as_large, tmp_path):
    as_large()
    splits = tmp_path / "splits.parquet"
    first = sides(opened(media, splits, holdout=0.5)[0])
    data = DataConfig(media=(str(media), str(media / "sub1")), workers=0, holdout=0.1)
    split = Split.read(splits)
    (source,) = open_sources(data, split)
    assert len(source.table) == COUNT and sides(source) == first
    assert split.report()[-1].startswith("media: 10 files with several paths")


def test_links_and_hard_links_count_once(media, as_large):
    as_large()
    os.link(media / "sub0" / "000.png", media / "sub1" / "a.png")
    os.symlink(media / "sub2" / "002.png", media / "a.png")
    split = Split()
    (source,) = open_sources(DataConfig(media=str(media), workers=0), split)
    names = {name for part in sides(source) for name in part}
    assert len(source.table) == COUNT and "a.png" in names and "sub2/002.png" not in names
    assert "sub0/000.png" in names and "sub1/a.png" not in names
    assert split.report() == ["media: 2 files with several paths or in overlapping folders count once"]


def test_processes_get_the_path_of_a_table_and_the_same_digest(media, as_large, tmp_path):
    as_large()
    source, data = opened(media)
    text = pickle.dumps(source)
    assert len(text) < 2000
    assert repr(pickle.loads(text).table.to_pylist()) == repr(source.table.to_pylist())  # some are NaN
    sampler = Sampler([source], PHOTOS, "train", data)
    assert pickle.loads(pickle.dumps(sampler))[7].name == sampler[7].name
    checked = digest([source])
    assert checked == digest([opened(media)[0]])
    draw(media, COUNT, 1)
    assert checked != digest([opened(media)[0]])


def test_large_and_small_folders_are_one_source(media, as_large, tmp_path):
    draw(tmp_path / "few", 50, 3)
    data = DataConfig(media=(str(media), str(tmp_path / "few")), workers=0, holdout=0.3)
    expected = samples(open_sources(data)[0], data)
    as_large(COUNT)
    (source,) = open_sources(data)
    assert len(source.files) == 2
    for found, wanted in zip(samples(source, data), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_cache_that_cannot_be_written_costs_only_time(media, as_large):
    as_large()
    mapped.folder().parent.mkdir(parents=True)
    mapped.folder().write_text("")  # a file instead of the folder
    for _ in range(2):
        source, data = opened(media)
        assert not source.files and len(source.table) == COUNT and len(samples(source, data)[0]) == 40


def test_files_that_nobody_opened_for_months_are_removed(media, as_large):
    as_large()
    (old,) = opened(media)[0].files
    os.utime(old, (0, 0))
    opened(media)  # opens it, so it stays
    draw(media, COUNT, 1)
    opened(media)
    assert os.path.exists(old)
    os.utime(old, (0, 0))
    draw(media, COUNT + 1, 1)
    opened(media)
    assert not os.path.exists(old)


@pytest.mark.parametrize("seed", range(40))
def test_a_rule_splits_new_files_as_they_are_split_one_by_one(seed):
    rng = random.Random(seed)
    photos, clips = rng.choice([0, 1, 2, 50]), rng.choice([0, 1, 2, 9, 10, 30])
    holdout = rng.choice([0.0, 0.001, 0.1, 0.9, 0.999])
    files = [
        {"path": f"{rng.random()}", "frames": frames, "duration": 10.0 * (frames > 1), "error": None}
        for frames in [1] * photos + [240] * clips
    ]
    types = {"path": pa.string(), "frames": pa.int32(), "duration": pa.float64(), "error": pa.string()}
    table = large.hashed(pa.Table.from_pylist(files, pa.schema(types)))
    rule = Rule.of(*large.extents(table), holdout)
    expected = seams(split_files(files, holdout), table)
    np.testing.assert_array_equal(rule.seams(table), expected)
    assert [rule.seam(file) for file in files] == expected.tolist()


def test_a_threshold_holds_out_one_of_several_and_never_all():
    assert Hashes(5, 0.2, 0.9).below(0.3) == 0.3
    assert 0.2 < Hashes(5, 0.2, 0.9).below(0.1) < 0.2 + 1e-9
    assert Hashes(5, 0.2, 0.9).below(0.95) == 0.9
    assert Hashes(1, 0.2, 0.2).below(0.1) == 0.1 and Hashes(1, 0.2, 0.2).below(0.5) == 0.2
    assert Hashes(5, 0.2, 0.9).below(0.0) == 0.0


@pytest.mark.parametrize("count", [0, 1, 7, 8, 4095, 4096, 4097, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_a_set_of_rows_has_the_rows_that_were_chosen(count, share):
    chosen = np.random.default_rng(count).random(count) < share
    rows, expected = RowSet(chosen), np.flatnonzero(chosen)
    assert len(rows) == len(expected)
    assert [rows[i] for i in range(len(rows))] == expected.tolist()
    assert len(pickle.dumps(RowSet(np.ones(10**6, bool)))) < 200_000 < sys.getsizeof(np.zeros(10**6))


def test_the_rows_of_a_file_have_its_number(tmp_path):
    """Whole clips, clips that end held out, also one that became shorter than its seam, photos and scenes."""
    same = {"kind": "video", "width": 8, "height": 8, "fps": 10.0}
    frames = [100, 100, 1, 1, 100, 100, 2, 2]
    rows = [same | {"path": f"{i}", "frames": n, "duration": n / 10} for i, n in enumerate(frames)]
    rows[1]["cuts"] = rows[5]["cuts"] = [1.0, 2.0, 8.5]
    rows[7]["duration"] = 0.1  # its only sample could begin at 0
    schema = pa.schema(
        {"path": pa.string(), "kind": pa.string(), "width": pa.int32(), "height": pa.int32()}
        | {"frames": pa.int32(), "fps": pa.float64(), "duration": pa.float64(), "error": pa.string()}
        | {"cuts": pa.list_(pa.float64())}
    )
    times = np.array([8.0, 8.0, WHOLE, NOTHING, WHOLE, NOTHING, 8.0, 8.0])
    for cuts in (False, True):
        table = from_index(pa.Table.from_pylist(rows, schema), times, cuts=cuts)
        paths = table["path"].to_pylist()
        assert file_numbers(table).tolist() == [sorted(set(paths)).index(path) for path in paths]
        assert len(paths) > len(set(paths))
        path = mapped.save(table.slice(1))
        assert file_numbers(mapped.joined([path])).tolist() == file_numbers(table.slice(1)).tolist()


def test_values_are_taken_from_the_chunks_that_have_them():
    column = pa.chunked_array([[f"{i}" for i in range(3)], [], ["3"], ["4", "5"]])
    for rows in ([], [0], [2, 3], [0, 1, 2, 3, 4, 5], [5]):
        taken = mapped.taken(column, np.array(rows, np.int64))
        assert taken.to_pylist() == [str(row) for row in rows]


def described(path, shard=None, **fields):
    """The row of an index about a readable photo of 5 bytes, of version 7."""
    row = {"path": path, "shard": shard, "kind": "image", "size": 5, "length": 5, "mtime_ns": 7}
    return row | {"scan": "full", "error": None, "reader": media_files.reader()} | fields


@pytest.mark.parametrize(
    ("rows", "entry", "is_settled"),
    [
        ([described("a")], Entry("a", 5, 7), True),
        ([described("a")], Entry("a", 6, 7), False),
        ([described("a")], Entry("a", 5, 8), False),
        ([described("a")], Entry("b", 5, 7), False),
        ([described("a", length=None)], Entry("a", 5, 7), False),  # of an earlier version
        ([described("a", scan="headers")], Entry("a", 5, 7), False),
        ([described("a", error="damaged")], Entry("a", 5, 7), True),
        ([described("a", error="not found", reader=None)], Entry("a", 5, 7), False),
        ([described("t/a", "t"), described("t/b", "t")], Entry("t", 99, 7), True),
        ([described("t/a", "t"), described("t/b", "t", scan="headers")], Entry("t", 99, 7), False),
        ([described("t/a", "t"), described("t", "t", error="torn")], Entry("t", 99, 7), False),
        ([described("t/a", "t")], Entry("t", 99, 8), False),
    ],
)
def test_an_entry_is_settled_if_a_scan_would_find_nothing_else(rows, entry, is_settled):
    table = pa.Table.from_pylist([*rows, described("other")], SCHEMA)
    found, others = settled(table, [entry, Entry("other", 5, 7)], "full", with_cuts=False)
    assert found.tolist() == [is_settled] * len(rows) + [True]
    assert others == [] if is_settled else [entry]


def test_names_that_became_equal_are_not_settled():
    table = pa.Table.from_pylist([described("a"), described("b")], SCHEMA)
    entries = [Entry("a", 5, 7), Entry("a", 5, 7), Entry("b", 5, 7)]
    found, others = settled(table, entries, "full", with_cuts=False)
    assert not found.any() and others == entries


def test_clips_whose_cuts_are_unknown_are_not_settled_if_cuts_are_wanted():
    rows = [described("a", kind="video"), described("b", kind="video", cuts=[]), described("c")]
    entries = [Entry(name, 5, 7) for name in "abc"]
    table = pa.Table.from_pylist(rows, SCHEMA)
    assert settled(table, entries, "full", with_cuts=False)[1] == []
    assert settled(table, entries, "full", with_cuts=True)[1] == entries[:1]


def test_workers_read_the_samples_that_threads_read(media, as_large):
    as_large()
    names = []
    for workers in (0, 2):
        source, data = opened(media)
        data = dataclasses.replace(data, workers=workers)
        with pipeline.train_stream([source], [PHOTOS], data, seed=0) as stream:
            names.append([next(stream).batches[PHOTOS.name].names for _ in range(3)])
    assert source.files and names[0] == names[1]
