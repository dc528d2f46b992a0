"""Shards are random samples of their collection, and an interrupted packing continues."""

import hashlib
import itertools
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from vaejax.data import index_file, order, prepare, shards
from vaejax.data.split import held_out
from vaejax.data.worker import Worker
from vaejax.errors import InputError, TrainingFailed


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (24, 20), (number, 0, 100)).save(folder / f"{number:02}.png")
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def made(count, size=1000, **columns):
    """An index of made-up files, in order."""
    rows = [{"path": f"{i:05}.jpg", "kind": "image", "size": size} | columns for i in range(count)]
    return order.ordered(pa.Table.from_pylist(rows, index_file.SCHEMA))


def test_files_are_packed_in_the_order_of_their_hashes(media, tmp_path):
    def place(name):
        return hashlib.blake2b(name.encode(), digest_size=8, person=b"vaejax order").digest()

    out = tmp_path / "shards"
    prepare.pack(media, out, shard_mb=0.0003, progress=False)
    names = sorted(path.name for path in out.glob("*.array_record"))
    records = []
    for name in names:
        reader = ArrayRecordReader(str(out / name))
        records.append(reader.read(list(range(reader.num_records()))))
    expected = sorted((path.name for path in media.glob("*.png")), key=place)
    assert list(itertools.chain(*records)) == [(media / name).read_bytes() for name in expected]
    # A shard ends with the file that fills it.
    assert all(sum(map(len, shard)) >= 300 for shard in records[:-1])
    assert all(sum(map(len, shard[:-1])) < 300 for shard in records)


def test_every_shard_has_its_share_of_held_out_files(tmp_path):
    """With the hash of the split, the first tenth would be all held-out files."""
    table = made(4000)
    index_file.save(table, str(tmp_path / "index.parquet"))
    planned = list(shards.plan(str(tmp_path / "index.parquet"), 400_000))
    chosen = held_out(table["path"].to_pylist(), 0.1)
    for shard in planned:
        paths = index_file.rows(str(tmp_path / "index.parquet"), shard.first, shard.count)["path"].to_pylist()
        assert 15 < len(chosen & set(paths)) < 70  # of 400; the standard deviation is 6
    assert [shard.count for shard in planned] == [400] * 10


def test_parts_follow_each_other_in_the_order():
    parts = [order.part(path) for path in made(1000)["path"].to_pylist()]
    assert parts == sorted(parts) and 0 <= parts[0] < 50 and order.PARTS - 50 < parts[-1] < order.PARTS


def test_an_index_saved_in_pieces_is_the_same_file_and_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(index_file, "GROUP", 64)
    table = made(500, error=None, labels='{"a": 1}', cuts=[0.5])
    whole, pieces = (str(tmp_path / name) for name in ("whole.parquet", "pieces.parquet"))
    index_file.save(table, whole)
    cuts = [0, 1, 64, 65, 200, 200, 499, 500]
    index_file.save_pieces((table.slice(a, b - a) for a, b in itertools.pairwise(cuts)), pieces)
    with open(whole, "rb") as one, open(pieces, "rb") as other:
        assert one.read() == other.read()
    assert index_file.load(pieces).equals(table) and index_file.is_current(pieces)
    for first, count in ((0, 500), (63, 2), (64, 64), (490, 10), (130, 1)):
        assert index_file.rows(whole, first, count).equals(table.slice(first, count))
    read = [piece["path"].to_pylist() for piece in index_file.pieces(whole, ["path"])]
    assert len(read) == 8 and list(itertools.chain(*read)) == table["path"].to_pylist()


def test_a_packing_that_is_interrupted_keeps_complete_shards(media, tmp_path, monkeypatch, capsys):
    out, hidden = tmp_path / "shards", tmp_path / ".shards.partial"
    arguments = [f"--media={media}", f"--out={out}", "--shard-mb=0.0003"]
    finish = shards.finish

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(shards, "finish", interrupt)
    assert prepare.main(arguments) == 130
    assert capsys.readouterr().err.endswith(
        "stopped; complete shards are kept; run the same command to continue\n"
    )
    monkeypatch.setattr(shards, "finish", finish)
    kept = {path.name: path.stat().st_ino for path in hidden.glob("*.array_record")}
    assert len(kept) > 3 and not out.exists()
    (hidden / "media-00001.array_record").unlink()
    changed = order.ordered(index_file.load(str(media / ".vaejax-index.parquet")))["path"][0].as_py()
    Image.new("RGB", (24, 20), (0, 200, 0)).save(media / changed)  # a file of the first shard
    assert prepare.main(arguments) == 0
    inodes = {path.name: path.stat().st_ino for path in out.glob("*.array_record")}
    again = {name for name in kept if inodes[name] != kept[name]}
    assert {"media-00000.array_record", "media-00001.array_record"} <= again and len(again) < len(kept)
    assert not list(tmp_path.glob(".*"))
    prepare.pack(media, tmp_path / "fresh", shard_mb=0.0003, progress=False)
    assert contents(out) == contents(tmp_path / "fresh")


def test_smaller_shards_of_an_interrupted_packing_do_not_stay(media, tmp_path, monkeypatch):
    finish = shards.finish
    monkeypatch.setattr(shards, "finish", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare.pack(media, tmp_path / "shards", shard_mb=0.0001, progress=False)
    monkeypatch.setattr(shards, "finish", finish)
    assert prepare.pack(media, tmp_path / "shards", progress=False).shards == 1
    assert set(contents(tmp_path / "shards")) == {"media-00000.array_record", "index.parquet"}


def test_one_process_or_several_give_the_same_bytes(media, tmp_path):
    for workers in (1, 3):
        prepare.pack(media, tmp_path / f"{workers}", shard_mb=0.0003, progress=False, workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_a_killed_process_gets_one_line(media, tmp_path, monkeypatch):
    start = Worker._start

    def dead(worker):
        process = start(worker)
        if worker._module.endswith("shard_worker"):
            process.kill()
        return process

    monkeypatch.setattr(Worker, "_start", dead)
    with pytest.raises(
        TrainingFailed, match=r"--out=.*media-00000\.array_record ended \(signal 9\); the same"
    ):
        prepare.pack(media, tmp_path / "shards", progress=False)


def test_a_file_that_vanishes_gets_one_line(media, tmp_path, monkeypatch):
    plan = shards.plan

    def vanish(*arguments):
        os.remove(media / "07.png")
        return plan(*arguments)

    monkeypatch.setattr(shards, "plan", vanish)
    with pytest.raises(InputError, match=r"media/07\.png: No such file or directory; accepted: .*continues$"):
        prepare.pack(media, tmp_path / "shards", progress=False)


def test_only_unreadable_files_make_no_shard(tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "broken.png").write_bytes(b"no picture")
    assert prepare.pack(tmp_path / "media", tmp_path / "out", progress=False) == (0, 0, 0, 1)
    assert len(pq.read_table(tmp_path / "out" / "index.parquet")) == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '{"kind": "tfds"}', '{"kind": "media", "path": "x", "filter": "hdr"}', '{"path": "x"}'],
)
def test_a_wrong_source_gets_one_line(text, tmp_path, capsys):
    assert prepare.main([f"--source={text}", f"--out={tmp_path}/out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --source={text}; accepted: ") or "collections; accepted: one" in line
