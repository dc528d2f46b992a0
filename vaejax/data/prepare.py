"""Packs photos and clips into array_record shards, or prepares a TFDS data set.

    python -m vaejax.data.prepare --media=FOLDER --out=DIR

A few large files read faster from network and cloud file systems than many small ones. The records are the
original files, byte for byte.
"""

import contextlib
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from vaejax import cli
from vaejax.data import cluster, cuts, index, index_file, shards, sources
from vaejax.data.kinds.array_record import INDEX_FILE, Shards
from vaejax.data.kinds.collection import Collection, Folder
from vaejax.data.table import count_of
from vaejax.errors import InputError
from vaejax.files import atomic_folder, expand_home
from vaejax.runtime import beam, storage

NAME = "--media"  # of the collection in messages


class Packed(NamedTuple):
    """The result of packing.

    Attributes:
      files: number of files in the shards.
      shards: number of shards.
      size: bytes of the files.
      unreadable: number of files that are left out.
    """

    files: int
    shards: int
    size: int
    unreadable: int


def pack(
    media: Collection | str | os.PathLike,
    out: str | os.PathLike,
    shard_mb: float = 256.0,
    progress: bool = True,
    scan: str = "full",
    with_cuts: bool = False,
    workers: int | None = None,
    options: Sequence[str] = (),
) -> Packed:
    """Packs the readable files of a collection into shards; their index appears only once all are complete.

    A call that is interrupted keeps the complete shards, in a hidden folder beside `out`, and the next one
    continues. If `out` is in a bucket, they are in `out`, whose index appears at last.

    Args:
      media: photos and clips, or the path of a folder tree of them.
      out: a new or empty folder, or, on disk, an earlier result, which stays in place until the new one is
        complete.
      shard_mb: size in megabytes (10^6 bytes) after which the next shard begins.
      progress: whether to show progress bars, and a summary of the media, on stderr.
      scan: 'full' or 'headers', see `index.load_or_build`.
      with_cuts: whether to find the cuts in clips.
      workers: number of processes; None starts one per core.
      options: `--runner=NAME` and further options of Beam, which runs everything on a cluster; () does not.

    Raises:
      InputError: if there are no media, or a file cannot be read, or `out` is not writable, or `out` is
        neither empty nor an earlier result.
      TrainingFailed: if a worker process is killed, or a job fails.
    """
    collection = media if isinstance(media, Collection) else Folder(storage.located(media))
    out = storage.located(out)
    _check_out(out)
    if not options:
        table = index.load_or_build(collection, workers, progress, name=NAME, scan=scan, with_cuts=with_cuts)
    with contextlib.ExitStack() as stack:
        folder = out
        if not storage.is_url(out):
            with cli.writing(out):
                folder = str(stack.enter_context(atomic_folder(out, keep=True)))
        listed = storage.join(folder, f"{shards.RECORDS}/{INDEX_FILE}")
        if options:
            places = [*index_file.places(collection)[: collection.is_folder], listed]
            listed = cluster.build_index(options, collection, places, NAME, scan, with_cuts)
        else:
            with cli.writing(out):
                index_file.save(table, listed)
        packing = shards.Packing(collection, listed, folder)
        planned = list(shards.plan(listed, shard_mb * 1e6))
        if options:
            cluster.pack(options, packing, planned)
        else:
            shards.write_all(packing, planned, workers, progress)
        shards.finish(packing, planned)
        errors = index_file.pieces(storage.join(folder, INDEX_FILE), ["error"])
        unreadable = sum(len(piece) - piece["error"].null_count for piece in errors)
        sizes = [shard.size for shard in planned]
        files = sum(shard.count for shard in planned) - unreadable
        return Packed(files, sum(size > 0 for size in sizes), sum(sizes), unreadable)


def _check_out(out: str) -> None:
    """Raises InputError if a folder for shards has something else in it."""
    if storage.is_url(out):
        if storage.exists(storage.join(out, INDEX_FILE), "--out"):
            raise InputError(f"--out={out}: has complete shards; accepted: a new or empty folder of a bucket")
        return
    accepted = "accepted: a new or empty folder, or one that vaejax prepare made"
    if os.path.exists(out) and not os.path.isdir(out):
        raise InputError(f"--out={out}: a file, not a folder; {accepted}")
    if os.path.isdir(out) and os.listdir(out) and not os.path.isfile(os.path.join(out, INDEX_FILE)):
        raise InputError(f"--out={out}: not empty, but has no {INDEX_FILE}; {accepted}")


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
        "Packs photos and clips into array_record shards, for a source of kind array_record; or prepares a"
        " TFDS data set, for a source of kind tfds.",
        "--media=~/Pictures --out=/data/pictures",
    )
    input_group = parser.add_mutually_exclusive_group(required=True)
    input_group.add_argument("--media", metavar="FOLDER", help="a folder tree of photos and clips")
    input_group.add_argument(
        "--source",
        metavar="JSON",
        help='an entry of data.sources, such as {"kind": "webdataset", "path": "/data/tars"}',
    )
    input_group.add_argument("--tfds", metavar="NAME", help="a data set from tensorflow.org/datasets/catalog")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for the shards; with --tfds, the data_dir of TFDS (default: ~/tensorflow_datasets)",
    )
    parser.add_argument(
        "--shard-mb", metavar="MB", type=float, default=256.0, help="megabytes per shard (default: 256)"
    )
    parser.add_argument(
        "--workers", metavar="N", type=cli.at_least(1), help="processes (default: one per core)"
    )
    index.add_scan_flags(parser)
    beam.add_flag(parser)
    chosen, options = beam.parse(parser, arguments)

    def work():
        start = time.monotonic()
        if chosen.tfds:
            print(f"{chosen.tfds}: prepared in {prepare_tfds(chosen.tfds, chosen.out)}")
            print(f"done in {index.duration_of(time.monotonic() - start)}")
            fields = {"kind": "tfds", "name": chosen.tfds} | ({"data_dir": chosen.out} if chosen.out else {})
            print(f"next: {index.TRAIN} {sources.flag(fields)}")
            return
        if not chosen.out:
            raise InputError("--out is missing; accepted: --out=DIR, a folder for the shards")
        if not chosen.shard_mb > 0:
            raise InputError(f"--shard-mb={chosen.shard_mb:g}; accepted: a number above 0")
        cuts.check(chosen.cuts, chosen.scan, command=True)
        media = sources.collection_of(chosen.source, "--source=") if chosen.source else chosen.media
        packed = pack(
            media,
            chosen.out,
            chosen.shard_mb,
            scan=chosen.scan,
            with_cuts=chosen.cuts,
            workers=chosen.workers,
            options=options,
        )
        print(
            f"{chosen.out}: {count_of(packed.files, 'file')} packed into {count_of(packed.shards, 'shard')}"
            f" ({packed.size / 1e6:.1f} MB), unreadable files left out: {packed.unreadable}"
        )
        flag = sources.flag({"kind": "array_record", "path": chosen.out})
        flag += " --config.data.cuts=True" * chosen.cuts
        seconds = time.monotonic() - start
        if options:  # the index may not fit into memory
            print(f"done in {index.duration_of(seconds)}\nnext: {index.TRAIN} {flag}")
            return
        table = Shards(storage.located(chosen.out)).packed("--out")
        print("\n".join(index.next_steps(table, flag, seconds)))

    return cli.run(work, "stopped; complete shards are kept; run the same command to continue")


if __name__ == "__main__":
    sys.exit(main())
