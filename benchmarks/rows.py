"""Opening a source of ten million indexed files: seconds, and memory of the trainer and its workers.

    python benchmarks/rows.py --out=DIR [--rows=10000000] [--shards=1000] [--workers=2]

Makes tars of ten photos of the demo each, and an index in which every tar has thousands of photos: its rows
have names of their own, but share the ten places in their tar. So the index is as large as that of a real
collection, and all samples are really decoded. Each start is a process of its own: one with a single tar,
whose memory is that of the interpreter and its packages; the first one, which makes vaejax's cache; one for
which the kernel has forgotten the files; and one after that.

Memory is the proportional set size (PSS) of the process and its workers, in which pages that several of them
map count once. It is read after the first batch of two buckets, and again after many records were read.
"anonymous" is the part that is not in files, and so cannot be dropped by the kernel.
"""

import argparse
import io
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from PIL import Image

from vaejax.config.schema import DataConfig
from vaejax.data import index_file, media, order
from vaejax.data.bucket import Bucket
from vaejax.data.kinds import demo
from vaejax.data.kinds.webdataset import Tars
from vaejax.data.pipeline import eval_batches, train_stream
from vaejax.data.sources import held_out_report, open_sources, training_files
from vaejax.data.split import Split

PHOTOS = 10  # different photos in a tar
SIDE = 384
RECORDS = 50_000  # after reading these at random, a process has mapped the whole table
BUCKETS = (Bucket(1, 256, 256, 16), Bucket(1, 192, 320, 16))
pc: Any = pyarrow.compute  # its functions are made at import


def write_tars(folder: pathlib.Path, count: int) -> pa.Table:
    """Writes equal tars of ten photos, and returns the rows of the index of the first."""
    rng = np.random.default_rng(0)
    pictures = [Image.open(demo.path(name)).convert("RGB") for name in ("china.jpg", "astronaut.png")]
    folder.mkdir(parents=True)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for i in range(PHOTOS):
            picture = pictures[i % len(pictures)]
            y, x = rng.integers(0, (picture.height - SIDE, picture.width - SIDE))
            photo = io.BytesIO()
            picture.crop((x, y, x + SIDE, y + SIDE)).save(photo, "JPEG", quality=90)
            member = tarfile.TarInfo(f"{i}.jpg")
            member.size = len(photo.getvalue())
            tar.addfile(member, io.BytesIO(photo.getvalue()))
    for i in range(count):
        (folder / f"{i:05}.tar").write_bytes(packed.getvalue())
    tars = Tars(str(folder))
    entry = next(entry for entry in tars.listed("--out") if entry.path == "00000.tar")
    listed = list(tars.rows(entry, "--out", Counter()))
    described = [row | media.probe(tars.content_of(row), "image") for row in listed]
    same = {"error": None, "reader": media.reader(), "scan": "full", "cuts": None}
    return pa.Table.from_pylist([row | same for row in described], index_file.SCHEMA)


def index_pieces(folder: pathlib.Path, photos: pa.Table, rows: int, shards: int) -> Iterator[pa.Table]:
    """Yields the index of `rows` photos in order, 2^18 rows at a time."""
    names = [f"{i // (rows // shards):05}.tar/{i:09}.jpg" for i in range(rows)]
    places = np.fromiter(map(order.place, names), np.uint64, rows)
    del names
    versions = np.array([(folder / f"{i:05}.tar").stat().st_mtime_ns for i in range(shards)])
    for numbers in np.array_split(np.argsort(places), -(-rows // 2**18)):
        shard = numbers // (rows // shards)
        piece = photos.take(pa.array(numbers % PHOTOS))
        name = pa.array([f"{i:09}.jpg" for i in numbers.tolist()])
        tar = pa.array([f"{i:05}.tar" for i in shard.tolist()])
        labels = pa.array([json.dumps({"caption": f"photo {i} of a collection"}) for i in numbers.tolist()])
        columns = {"path": pc.binary_join_element_wise(tar, name, "/"), "name": name, "shard": tar}
        columns |= {"labels": labels, "mtime_ns": pa.array(versions[shard])}
        for key, column in columns.items():
            piece = piece.set_column(piece.schema.get_field_index(key), key, column)
        yield piece.cast(index_file.SCHEMA)


def build(folder: pathlib.Path, rows: int, shards: int) -> None:
    """Makes the collection in `folder`, unless it is there."""
    if folder.exists():
        return
    photos = write_tars(folder, shards)
    pieces = index_pieces(folder, photos, rows, shards)
    index_file.save_pieces(pieces, index_file.places(Tars(str(folder)))[0])


def memory(process: int) -> dict[str, float]:
    """The memory of a process in GB: PSS, and of it what is not in files."""
    lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1e6 for line in lines}
    return {"pss": sizes["Pss"], "anonymous": sizes["Pss_Anon"]}


def children(process: int) -> list[int]:
    """The processes below a process."""
    of_threads = [path.read_text() for path in pathlib.Path(f"/proc/{process}/task").glob("*/children")]
    found = map(int, " ".join(of_threads).split())
    return [child for number in found for child in (number, *children(number))]


def start(folder: str, workers: int) -> dict[str, float]:
    """Opens the collection and reads the first batches; returns seconds and gigabytes."""
    sources = {"mine": {"kind": "webdataset", "path": folder}}
    data = DataConfig(sources=sources, workers=workers)
    figures, before = {}, time.monotonic()

    def note(name: str) -> None:
        nonlocal before
        figures[name], before = time.monotonic() - before, time.monotonic()

    split = Split.read(f"{folder}.splits.parquet")
    opened = open_sources(data, split)
    note("open")
    split.write(f"{folder}.splits.parquet")
    for line in split.report() + held_out_report(opened, BUCKETS, data):
        print(line, file=sys.stderr)
    note("held-out report")
    print(training_files(opened, BUCKETS, data), file=sys.stderr)
    note("training files")
    with train_stream(opened, BUCKETS, data, seed=0) as stream:
        note("stream")
        next(stream)
        note("first batches")
        used = [memory(process) for process in (os.getpid(), *children(os.getpid()))]
        figures |= {f"{name} GB": sum(each[name] for each in used) for name in used[0]}
        figures["trainer GB"] = used[0]["pss"]
        for row in np.random.default_rng(0).integers(len(opened[0].table), size=RECORDS).tolist():
            opened[0].record(row)
        figures["later pss GB"] = sum(memory(each)["pss"] for each in (os.getpid(), *children(os.getpid())))
        before = time.monotonic()
        next(eval_batches(opened, BUCKETS[0], data, BUCKETS[0].batch))
        note("held-out batch")
    figures["peak RSS GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return figures


def forget(folder: pathlib.Path) -> None:
    """Makes the kernel forget the files in a folder, so that they are read from the disk again."""
    for path in filter(pathlib.Path.is_file, folder.rglob("*")):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    """Makes the collections, and prints the figures of each start."""
    parser = argparse.ArgumentParser(description="Measures opening a source of many files.")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for tars, index and cache")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--start", help="(internal) folder of the collection that this process opens")
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.start, args.workers)))
        return
    cache = args.out.resolve() / "cache"
    starts = {"one tar": (1000, 1), "first start": (args.rows, args.shards)}
    starts["from the disk"] = starts["later start"] = starts["first start"]
    for name, (rows, shards) in starts.items():
        folder = args.out.resolve() / f"{rows}-{shards}"
        before = time.monotonic()
        build(folder, rows, shards)
        if name == "first start":
            shutil.rmtree(cache, ignore_errors=True)
        if name == "from the disk":
            forget(args.out)
        print(f"{name}: {rows} rows in {shards} tars, made in {time.monotonic() - before:.0f} s", flush=True)
        command = [sys.executable, __file__, f"--out={args.out}", f"--start={folder}"]
        done = subprocess.run(
            [*command, f"--workers={args.workers}"],
            env=os.environ | {"XDG_CACHE_HOME": str(cache)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for figure, value in json.loads(done.stdout.splitlines()[-1]).items():
            print(f"  {figure:16} {value:8.2f}{'' if 'GB' in figure else ' s'}", flush=True)


if __name__ == "__main__":
    main()
