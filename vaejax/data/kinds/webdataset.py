"""The source webdataset: photos and clips in tars, on disk or in a bucket, as img2dataset writes them.

A tar's headers are read once, and its media are then read at random by their positions. The files of one
sample share their name up to the first dot; the columns of its .json, and its .txt as `caption`, are labels.
"""

import json
import os
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from vaejax.data import media
from vaejax.data.kinds.collection import Collection
from vaejax.errors import one_line
from vaejax.runtime import storage
from vaejax.runtime.content import Part

EXTENSION = ".tar"
CAPTION = "caption"  # label with the text of .txt
LARGEST_LABELS = 2**20  # bytes; larger .json and .txt files are no labels


class Tars(Collection):
    """All tars of a folder tree. The path of a file in one is TAR/NAME."""

    NEEDED: ClassVar[str] = "a folder with .tar files of photos or clips"

    @property
    def variant(self) -> str:  # noqa: D102
        return "webdataset"

    def takes(self, path):  # noqa: D102
        return path.endswith(EXTENSION)

    def rows(self, entry, name, others):
        """The photos and clips of a tar; those before the damage if it is torn, and then an error."""
        tar, size, version = entry
        found, labels, reason = [], defaultdict(dict), None
        try:
            with Part(storage.join(self.location, tar), 0, size).open() as file:
                for member in _headers(file, size):
                    key, ending = _split(member.name)
                    if kind := media.kind_of(member.name):
                        place = {"shard": tar, "position": member.offset_data, "length": member.size}
                        row = {"path": f"{tar}/{member.name}", "name": member.name, "kind": kind}
                        found.append((key, row | place | {"size": member.size, "mtime_ns": version}))
                    elif ending in (".json", ".txt") and member.size <= LARGEST_LABELS:
                        file.seek(member.offset_data)
                        labels[key].update(_labels(ending, file.read(member.size)))
                    else:
                        others[ending] += 1
        except (tarfile.TarError, OSError, EOFError) as error:
            reason = f"damaged tar: {one_line(error)}"
        for key, row in found:
            yield row | {"labels": json.dumps(labels[key]) if labels[key] else None}
        if reason:
            row = {"path": tar, "shard": tar, "kind": "image", "size": size, "mtime_ns": version}
            yield row | {"error": reason}


def _headers(file: Any, size: int) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar, in order.

    Raises:
      tarfile.TarError: if the tar ends early or a header is damaged.
    """
    tar: Any
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            if member.offset_data + member.size > size:
                raise tarfile.ReadError(f"{member.name} ends beyond the end of the file")
            tar.members = []  # otherwise tarfile keeps every header
            if member.isreg() and not os.path.basename(member.name).startswith("."):
                yield member
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile ends here without an error
            raise tarfile.ReadError(f"no valid header or end at byte {tar.offset}")


def _split(name: str) -> tuple[str, str]:
    """The key of a sample, and the ending of one of its files: 'a/b.seg.png' -> ('a/b', '.png')."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0]), os.path.splitext(base)[1].lower()


def _labels(ending: str, content: bytes) -> Mapping[str, Any]:
    """The labels in a .json or .txt file; {} if they cannot be read."""
    if ending == ".txt":
        return {CAPTION: content.decode("utf-8", "replace").strip()}
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
