"""Speed of the same samples from loose files, tars, Parquet files and array_record shards on a local disk.

    python benchmarks/packing.py [--media=FOLDER] [--rounds=7]

Packs photos and clips in every way, and decodes the same samples from each: photos and 17-frame clips at
128x128. All take turns, each in a process of its own; ratios are medians over rounds.
"""

import argparse
import io
import itertools
import json
import pathlib
import shutil
import sys
import tarfile
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
import turns

from vaejax.config.schema import defaults
from vaejax.data import media, prepare
from vaejax.data.bucket import Bucket
from vaejax.data.kinds import demo
from vaejax.data.sampler import Sampler
from vaejax.data.sources import open_sources

BUCKETS = (Bucket(1, 128, 128, 8), Bucket(17, 128, 128, 2))
SAMPLES = 24  # of each bucket in a turn
FILES_PER_PACK = 100


def pack(folder: pathlib.Path, out: pathlib.Path) -> dict[str, dict[str, str]]:
    """Packs the files of a folder; returns the entry of data.sources of each way."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and media.kind_of(path))
    for way in ("tars", "parquet"):
        (out / way).mkdir()
    for number in itertools.count():
        files = paths[number * FILES_PER_PACK : (number + 1) * FILES_PER_PACK]
        if not files:
            break
        rows = []
        with tarfile.open(out / "tars" / f"{number:05}.tar", "w") as tar:
            for path in files:
                name, content = path.relative_to(folder).as_posix(), path.read_bytes()
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
                rows.append({"media": {"bytes": content, "path": name}})
        pq.write_table(
            pa.Table.from_pylist(rows), out / "parquet" / f"{number:05}.parquet", row_group_size=10
        )
    prepare.pack(folder, out / "shards", progress=False)
    kinds = {"tars": "webdataset", "parquet": "parquet", "shards": "array_record"}
    packed = {way: {"kind": kind, "path": str(out / way)} for way, kind in kinds.items()}
    return {"files": {"kind": "media", "path": str(folder)}} | packed


def decoder(fields: dict[str, str]):
    """A function that decodes the next samples of a source."""
    data = defaults().data
    data.update(sources={"mine": fields}, holdout=0.0)
    samplers, numbers = (
        [Sampler(open_sources(data), bucket, "train", data) for bucket in BUCKETS],
        iter(range(10**9)),
    )

    def run() -> None:
        for number in itertools.islice(numbers, SAMPLES):
            for sampler in samplers:
                sampler[number]

    return run


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--media", metavar="FOLDER", help="photos and clips (default: the demo's)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        turns.serve(decoder(json.loads(args.work)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        out = pathlib.Path(temporary)
        folder = pathlib.Path(args.media) if args.media else out / "files"
        if not args.media:
            folder.mkdir()
            for name in demo.names():
                shutil.copy(demo.path(name), folder)
        ways = pack(folder, out)
        contestants = {
            way: turns.Contestant([sys.executable, __file__, "--work", json.dumps(fields)])
            for way, fields in ways.items()
        }
        for one in contestants.values():
            one.turn()  # reads everything into the file system's cache
        found = turns.compete(contestants, args.rounds)
        for one in contestants.values():
            one.end()
    frames = SAMPLES * sum(bucket.frames for bucket in BUCKETS)
    print("| packing | frames/s | time | CPU time |\n|---|---|---|---|")
    for way, one in found.items():
        ratios = [f"{one[what]['ratio']:.2f}x" for what in ("seconds", "cpu_seconds")]
        print(f"| {way} | {frames / one['seconds']['median']:.0f} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
