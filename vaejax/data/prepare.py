"""Packs a folder of photos and clips into array_record shards, or prepares a TFDS data set.

    python -m vaejax.data.prepare --media=FOLDER --out=DIR

A few large files read faster from network and cloud file systems than many small ones. The records are the
original files, byte for byte.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vaejax import cli
from vaejax.data import cuts, index
from vaejax.data.kinds.array_record import INDEX_FILE
from vaejax.data.table import count_of
from vaejax.errors import InputError
from vaejax.files import atomic_folder, expand_home


def pack(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    shard_mb: float = 256.0,
    progress: bool = True,
    scan: str = "full",
    with_cuts: bool = False,
) -> pa.Table:
    """Packs the readable files of a folder tree into shards; `out` appears only once it is complete.

    Args:
      folder: a folder tree of photos and clips.
      out: a new or empty folder, or an earlier result, which stays in place until the new one is complete.
      shard_mb: size in megabytes (10^6 bytes) after which the next shard begins.
      progress: whether to show progress bars, and a summary of the media, on stderr.
      scan: 'full' or 'headers', see `index.load_or_build`.
      with_cuts: whether to find the cuts in clips.

    Returns:
      The folder's media index, in which 'shard' and 'position' locate each file, and are null for unreadable
      files.

    Raises:
      InputError: if `folder` has no media, or `out` is not writable, or `out` is neither empty nor an earlier
        result.
    """
    folder, out = (os.path.abspath(expand_home(path)) for path in (folder, out))
    accepted = "accepted: a new or empty folder, or one that vaejax prepare made"
    if os.path.exists(out) and not os.path.isdir(out):
        raise InputError(f"--out={out}: a file, not a folder; {accepted}")
    if os.path.isdir(out) and os.listdir(out) and not os.path.isfile(os.path.join(out, INDEX_FILE)):
        raise InputError(f"--out={out}: not empty, but has no {INDEX_FILE}; {accepted}")
    listed = index.load_or_build(folder, progress=progress, name="--media", scan=scan, with_cuts=with_cuts)
    files = listed.to_pylist()
    with contextlib.ExitStack() as stack:
        with cli.writing(out):
            unfinished = stack.enter_context(atomic_folder(out))
        total = sum(file["size"] for file in files if not file["error"])
        with tqdm(total=total, unit="B", unit_scale=True, desc="packing", disable=not progress) as bar:
            _write_shards(files, folder, unfinished, shard_mb * 1e6, bar)
        table = pa.Table.from_pylist(files, index.SCHEMA)
        pq.write_table(table, unfinished / INDEX_FILE)
    return table


def _write_shards(files: list[dict], folder: str, out: Path, shard_bytes: float, bar: tqdm) -> None:
    """Writes the readable files in order; sets the shard and position of each, None for unreadable ones."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer, name, count, record, written = None, "", 0, 0, 0
    with contextlib.ExitStack() as shard:
        for file in files:
            file["shard"] = file["position"] = None
            if file["error"]:
                continue
            if writer is None or written >= shard_bytes:
                shard.close()
                name = f"media-{count:05}.array_record"
                # One file per group, because training reads single files at random; uncompressed, because the
                # formats of photos and clips are compressed already.
                writer = ArrayRecordWriter(str(out / name), "group_size:1,uncompressed")
                shard.callback(writer.close)
                count, record, written = count + 1, 0, 0
            content = Path(folder, file["path"]).read_bytes()
            writer.write(content)
            file["shard"], file["position"], file["length"] = name, record, len(content)
            record, written = record + 1, written + len(content)
            bar.update(len(content))


def prepare_tfds(name: str, out: str | None) -> str:
    """Downloads a TFDS data set, writes it in array_record format and returns its folder.

    Raises:
      InputError: if TensorFlow is not installed or the data set does not exist.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"--tfds={name}: preparing a data set needs TensorFlow, which is not installed; accepted:"
            " pip install tensorflow (only to prepare, not to train), or --media=FOLDER"
        )
    import tensorflow_datasets as tfds

    if out is None and "TFDS_DATA_DIR" not in os.environ:
        expand_home("~/tensorflow_datasets")  # raises if TFDS would create a folder called ~
    try:
        builder = tfds.builder(name, data_dir=out, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise InputError(
            f"--tfds={name}: no such data set; accepted: a name from tensorflow.org/datasets/catalog"
        ) from None
    builder.download_and_prepare()
    return str(builder.data_dir)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.data.prepare",
        "Packs a folder of photos and clips into array_record shards, for a source of kind array_record; or"
        " prepares a TFDS data set, for a source of kind tfds.",
        "--media=~/Pictures --out=/data/pictures",
    )
    input_group = parser.add_mutually_exclusive_group(required=True)
    input_group.add_argument("--media", metavar="FOLDER", help="a folder tree of photos and clips")
    input_group.add_argument("--tfds", metavar="NAME", help="a data set from tensorflow.org/datasets/catalog")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the shards; with --tfds, the data_dir of TFDS (default: ~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--shard-mb", metavar="MB", type=float, default=256.0, help="megabytes per shard (default: 256)"
    )
    index.add_scan_flags(parser)
    chosen = parser.parse_args(arguments)

    def work():
        start = time.monotonic()
        if chosen.tfds:
            print(f"{chosen.tfds}: prepared in {prepare_tfds(chosen.tfds, chosen.out)}")
            print(f"done in {index.duration_of(time.monotonic() - start)}")
            fields = {"kind": "tfds", "name": chosen.tfds} | ({"data_dir": chosen.out} if chosen.out else {})
            print(f"next: {index.TRAIN} {_sources_flag(fields)}")
            return
        if not chosen.out:
            raise InputError("--out is missing; accepted: --out=DIR, a folder for the shards of --media")
        if not chosen.shard_mb > 0:
            raise InputError(f"--shard-mb={chosen.shard_mb:g}; accepted: a number above 0")
        cuts.check(chosen.cuts, chosen.scan, command=True)
        table = pack(chosen.media, chosen.out, chosen.shard_mb, scan=chosen.scan, with_cuts=chosen.cuts)
        packed = table.filter(table["shard"].is_valid())
        size = sum(packed["size"].to_pylist())
        print(
            f"{chosen.out}: {count_of(len(packed), 'file')} packed into"
            f" {count_of(len(packed['shard'].unique()), 'shard')} ({size / 1e6:.1f} MB),"
            f" unreadable files left out: {len(table) - len(packed)}"
        )
        flag = _sources_flag({"kind": "array_record", "path": chosen.out})
        flag += " --config.data.cuts=True" * chosen.cuts
        print("\n".join(index.next_steps(table, flag, time.monotonic() - start)))

    return cli.run(work, "stopped; no unfinished files remain; run the same command again")


def _sources_flag(fields: dict[str, str]) -> str:
    """The flag of vaejax.main that trains on one source, quoted for a shell."""
    return f"--config.data.sources={shlex.quote(json.dumps({'mine': fields}))}"


if __name__ == "__main__":
    sys.exit(main())
