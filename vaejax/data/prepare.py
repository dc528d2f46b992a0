"""Packs a folder of photos and clips into array_record shards, or prepares a TFDS data set.

    python -m vaejax.data.prepare --media=FOLDER --out=DIR

Few large files read faster from network and cloud file systems than many small ones. The records are the
original files, byte for byte, so nothing is lost and nothing is decoded twice.
"""

import importlib.util
import math
import os
import shutil
import sys
import tempfile

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vaejax import cli
from vaejax.data import index
from vaejax.data.array_record import INDEX_FILE
from vaejax.errors import InputError


def pack(folder: str, out: str, shard_mb: float = 256.0, progress: bool = True) -> pa.Table:
    """Writes the readable files of a folder tree to shards in `out`, which appears only when it is whole.

    Args:
      folder: of photos and clips.
      out: a folder that is not there yet, or holds an earlier packing, which is replaced.
      shard_mb: a shard is closed when it reaches so many megabytes (10^6 bytes).
      progress: shows a progress bar on stderr.

    Returns:
      The index: the columns of the folder's index, and the shard and record of each file (null where the
      file cannot be read).

    Raises:
      InputError: if the folder holds nothing, or `out` holds something else.
    """
    folder, out = (os.path.abspath(os.path.expanduser(path)) for path in (folder, out))
    if os.path.exists(out) and not os.path.isdir(out):
        raise InputError(f"--out={out}: a file; accepted: a new folder, or one packed before")
    if os.path.isdir(out) and os.listdir(out) and not os.path.isfile(os.path.join(out, INDEX_FILE)):
        raise InputError(f"--out={out}: holds other files; accepted: a new folder, or one packed before")
    files = index.load_or_build(folder, progress=progress, name="--media").to_pylist()
    # Beside `out`, on the same file system: a rename makes it whole at once.
    try:
        os.makedirs(os.path.dirname(out), exist_ok=True)
        partial = tempfile.mkdtemp(prefix=os.path.basename(out) + ".partial-", dir=os.path.dirname(out))
    except OSError as error:
        raise InputError(f"--out={out}: {error.strerror}; accepted: a folder that can be written") from error
    os.chmod(partial, 0o755)
    try:
        total = sum(file["size"] for file in files if not file["error"])
        with tqdm(total=total, unit="B", unit_scale=True, desc="packing", disable=not progress) as bar:
            _write_shards(files, folder, partial, shard_mb * 1e6, bar)
        schema = pa.schema([*index.SCHEMA, ("shard", pa.string()), ("record", pa.int64())])
        table = pa.Table.from_pylist(files, schema)
        pq.write_table(table, os.path.join(partial, INDEX_FILE))
        if os.path.isdir(out):
            shutil.rmtree(out)
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return table


def _write_shards(files: list[dict], folder: str, out: str, shard_bytes: float, bar: tqdm) -> None:
    """Writes the readable files in order and notes in each where it went."""
    from array_record.python.array_record_module import ArrayRecordWriter

    shard, record, written, writer = -1, 0, math.inf, None
    try:
        for file in files:
            file["shard"] = file["record"] = None
            if file["error"]:
                continue
            if written >= shard_bytes:
                if writer:
                    writer.close()
                shard, record, written = shard + 1, 0, 0
                name = f"media-{shard:05}.array_record"
                # Groups of one: samples are read at random, one by one. Media files do not compress further.
                writer = ArrayRecordWriter(os.path.join(out, name), "group_size:1,uncompressed")
            with open(os.path.join(folder, file["path"]), "rb") as opened:
                content = opened.read()
            writer.write(content)
            file["shard"], file["record"] = name, record
            record, written = record + 1, written + len(content)
            bar.update(len(content))
    finally:
        if writer:
            writer.close()


def prepare_tfds(name: str, out: str | None) -> str:
    """Downloads a TFDS data set and writes it in array_record format; returns its folder.

    Raises:
      InputError: if TensorFlow is missing, or there is no such data set.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise InputError(
            f"--tfds={name}: TFDS writes data sets with TensorFlow, which is not installed; accepted:"
            " pip install tensorflow (here or elsewhere: training does without), or --media=FOLDER"
        )
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=out, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        raise InputError(f"--tfds={name}: accepted: a name of tensorflow.org/datasets/catalog") from None
    builder.download_and_prepare()
    return str(builder.data_dir)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = cli.parser(
        "vaejax.data.prepare",
        "Packs a folder of photos and clips into array_record shards for a source of kind array_record, or"
        " prepares a TFDS data set for a source of kind tfds.",
        "--media=~/Pictures --out=/data/pictures",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--media", metavar="FOLDER", help="a folder tree of photos and clips")
    what.add_argument("--tfds", metavar="NAME", help="a data set of tensorflow.org/datasets/catalog")
    parser.add_argument(
        "--out", metavar="DIR", help="the shards; for --tfds its data_dir (~/tensorflow_datasets)"
    )
    parser.add_argument(
        "--shard-mb", metavar="MB", type=float, default=256.0, help="of a shard (default: 256)"
    )
    chosen = parser.parse_args(arguments)

    def work():
        if chosen.tfds:
            print(f"prepared: {prepare_tfds(chosen.tfds, chosen.out)}")
            return
        if not chosen.out:
            raise InputError("--out is missing; accepted: the folder that the shards of --media go to")
        if not chosen.shard_mb > 0:
            raise InputError(f"--shard-mb={chosen.shard_mb:g}; accepted: a number above 0")
        table = pack(chosen.media, chosen.out, chosen.shard_mb)
        packed = len(table) - table["shard"].null_count
        print(f"{chosen.out}: {packed} files packed, {len(table) - packed} unreadable left out")
        print(f"train on it: data.sources = {{'mine': {{'kind': 'array_record', 'path': '{chosen.out}'}}}}")

    return cli.run(work, "stopped; nothing is left of it, run the same command again")


if __name__ == "__main__":
    sys.exit(main())
