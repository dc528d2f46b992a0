"""Checks that a checkpoint is whole: its files exist, and its contents match the saved checksums."""

import contextlib
import errno
import inspect
import json
import os
import pathlib
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from vaejax.errors import DISK_ERRORS, STORE_ERRORS, InputError, one_line, with_causes
from vaejax.runtime import storage

# Orbax's file of each item that is JSON; all other items are trees of arrays.
JSON_FILES = {"config": "metadata", "data": "metadata", "metadata": "metadata", "metrics": "metrics"}
ARRAY_FILES = ("_METADATA", "manifest.ocdbt")  # in every item that is a tree of arrays
CHECKSUMS = "checksums"  # key of the item 'metadata'; the first checkpoints do not have it
_REFERENCE = re.compile(
    r"(?P<kind>\w+):(?P<folder>[^:]*):(?P<file>[^:]*):(?P<offset>\d+):(?P<length>\d+)", re.ASCII
)
_DRIVERS = {"gs:": "gcs", "s3:": "s3"}  # TensorStore's
# Errors of a checkpoint that may be whole although it cannot be read now.
_PASSING = (
    *DISK_ERRORS,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ETIMEDOUT,
)


class DamagedCheckpoint(InputError):
    """A checkpoint cannot be used because its files are missing or have changed.

    Attributes:
      folder: folder of the checkpoint.
      reason: what is damaged.
    """

    def __init__(self, folder: str | os.PathLike, reason: str):
        self.folder, self.reason = cast(pathlib.Path, folder), reason
        super().__init__(f"{folder}: damaged checkpoint ({reason}); accepted: an undamaged checkpoint")


class Contents(NamedTuple):
    """The contents of a checkpoint that are read without its arrays.

    Attributes:
      json: values of the JSON items, by name.
      arrays: names of the items that are trees of arrays.
    """

    json: dict[str, Any]
    arrays: list[str]

    @property
    def checksums(self) -> dict[str, Any]:
        """Checksums by item: `of_json` of a JSON item, total `of_arrays` of a tree; {} if none are saved."""
        return self.json.get("metadata", {}).get(CHECKSUMS, {})


def read_contents(folder: pathlib.Path) -> Contents:
    """Reads the JSON items of a checkpoint and checks that the files of its arrays are there, in full size.

    Raises:
      DamagedCheckpoint: if a file is missing or truncated, is not JSON, or has another checksum.
      OSError, ValueError: if the disk fails, which says nothing about the checkpoint.
    """
    path = folder / "_CHECKPOINT_METADATA"
    try:
        items, values = list(_json(path)["item_handlers"]), {}
        for item in [item for item in items if item in JSON_FILES]:
            path = folder / item / JSON_FILES[item]
            values[item] = _json(path)
        contents = Contents(values, [item for item in items if item not in JSON_FILES])
        for item in contents.arrays:
            for path in [folder / item / name for name in ARRAY_FILES]:
                if not storage.entry(str(path)).size:
                    raise ValueError("empty")
            for path, size in _data_files(folder / item).items():
                if storage.entry(str(path)).size < size:
                    raise ValueError("truncated")
        for item, value in values.items():
            path = folder / item / JSON_FILES[item]
            if item in contents.checksums and contents.checksums[item] != of_json(value):
                raise ValueError("changed")
    except Exception as error:
        if _disk_failed(error):
            raise
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        reason = "is missing" if missing else "is truncated or has changed"
        raise DamagedCheckpoint(folder, f"{path.relative_to(folder)} {reason}") from error
    return contents


def _json(path: pathlib.Path) -> Any:
    return json.loads(storage.read(str(path)))


def _data_files(item: pathlib.Path) -> dict[pathlib.Path, int]:
    """The files that hold the arrays of an item, each with its minimum size, as their index states.

    The index is the B-tree of TensorStore's OCDBT format, which has checksums. Anything that a later version
    of the format adds is ignored, rather than taken for damage.
    """
    spec = {"driver": "file", "path": f"{item}/"}
    if storage.is_url(item):
        scheme, _, bucket, path = str(item).split("/", 3)
        spec = {"driver": _DRIVERS[scheme], "bucket": bucket, "path": f"{path}/"}
    store = tensorstore.KvStore.open(spec).result()
    sizes: dict[pathlib.Path, int] = {}
    versions = tensorstore.ocdbt.dump(store).result().get("versions", [])
    references = [version.get("root", {}).get("location", "") for version in versions[-1:]]
    while references:
        reference = references.pop()
        if match := _REFERENCE.fullmatch(reference):
            path = item / (match["folder"] + match["file"])
            sizes[path] = max(sizes.get(path, 0), int(match["offset"]) + int(match["length"]))
            if match["kind"] == "btreenode":
                entries = tensorstore.ocdbt.dump(store, node=reference).result().get("entries", [])
                references += [e[key] for e in entries for key in ("location", "indirect_value") if key in e]
    return sizes


def of_json(value: Any) -> int:
    """The CRC-32 of a JSON value, whatever the order of its keys."""
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def of_arrays(tree: Any) -> dict[str, int]:
    """This process's share of the sum of each array, by name; shares add up modulo 2**32.

    The sum is over the bits of the values, read as unsigned integers. Unlike a CRC, it does not depend on how
    an array is sharded. TensorStore stores no checksums of arrays itself.
    """
    sums = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        parts = [leaf]
        if isinstance(leaf, jax.Array):
            parts = [shard.data for shard in leaf.addressable_shards if shard.replica_id == 0]
        flat = (np.ascontiguousarray(part).reshape(-1) for part in parts)
        shares = (int(part.view(f"u{part.dtype.itemsize}").sum(dtype=np.uint32)) for part in flat)
        sums[jax.tree_util.keystr(path, simple=True, separator="/")] = sum(shares) % 2**32
    return sums


def total(shares: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Adds the shares of `of_arrays` of several processes."""
    return {name: sum(share[name] for share in shares) % 2**32 for name in shares[0]}


def check_arrays(folder: pathlib.Path, contents: Contents, item: str, sums: Mapping[str, int]) -> None:
    """Compares the sums of the arrays of an item, or of some of its arrays, with the saved ones.

    Raises:
      DamagedCheckpoint: if an array has changed.
    """
    saved = contents.checksums.get(item, {})
    for name, value in sums.items():
        if saved.get(name, value) != value:
            raise DamagedCheckpoint(folder, f"{item}/{name} has changed")


def verify(folder: pathlib.Path) -> None:
    """Reads a whole checkpoint on this process. If the disk fails, which proves no damage, just returns.

    Raises:
      DamagedCheckpoint: if the checkpoint is damaged.
    """
    item, handler = "", cast(Any, ocp.PyTreeCheckpointHandler())
    try:
        contents = read_contents(folder)
        for item in contents.arrays:
            with reading():
                shapes = handler.metadata(folder / item).tree
                arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
                tree = handler.restore(folder / item, args=ocp.args.PyTreeRestore(restore_args=arguments))
            check_arrays(folder, contents, item, of_arrays(tree))
    except DamagedCheckpoint:
        raise
    except Exception as error:  # Orbax raises bare Exceptions
        if not _disk_failed(error):
            raise DamagedCheckpoint(folder, f"{item} cannot be read: {one_line(error, 60)}") from error


def _disk_failed(error: Exception) -> bool:
    text = with_causes(error)
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | NotADirectoryError):
        return error.errno in (None, *_PASSING)  # gcsfs gives no numbers
    if isinstance(error, MemoryError) or any(status in text for status in STORE_ERRORS):
        return True
    return any(os.strerror(number) in text for number in _PASSING)


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """A context for reading arrays with Orbax that hides tracebacks of abandoned reads.

    If an array cannot be read, reads of other arrays are still pending, and Python would later print a
    traceback for each. The context therefore stays in effect if the block fails.
    """
    report = sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not closed and not inspect.iscoroutine(unraisable.object):
            report(unraisable)

    sys.unraisablehook = report_others
    yield
    sys.unraisablehook = report
