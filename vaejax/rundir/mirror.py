"""A run in a bucket: a folder on disk that mirrors its small files, and checkpoints in the bucket alone.

Everything but a checkpoint is written and read in the mirror, as for a run on disk. The mirror is a temporary
folder of this process, so the bucket alone has the run: another machine continues it.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vaejax.errors import InputError
from vaejax.files import expand_home
from vaejax.rundir import parts
from vaejax.runtime import storage

MARK = ".bucket"  # the file of a mirror that holds its URL
METRICS = "metrics.jsonl"  # in the bucket, its parts, see parts.py
COMMITTED = "commit_success.txt"  # Orbax writes it last: in a bucket, a folder cannot be renamed at once
SMALL = 2**25  # bytes; readers of a run skip larger files in its folders, such as init/model.safetensors
EVERY = 15.0  # seconds between two uploads of what has changed
PATIENCE = 20  # an object is uploaded again after this many times the time that its last upload took
PARTS = 200  # parts of the metrics above which a new session merges them


class Mirror:
    """The small files of a run, or of an export, at a URL.

    Args:
      url: gs://BUCKET/RUN.

    Attributes:
      url: the URL.
      path: the folder on disk.
      writes: number of objects written.
      bytes: their size.
    """

    def __init__(self, url: str):
        self.url, self.writes, self.bytes = url, 0, 0
        self._files = storage.file_system(url)
        self._temporary = tempfile.TemporaryDirectory(prefix="vaejax-")
        self.path = pathlib.Path(self._temporary.name) / url.rpartition("/")[2]
        self.path.mkdir()
        (self.path / MARK).write_text(url)
        self._remote: dict[str, int] = {}  # version of each object that the mirror has
        self._local: dict[str, tuple[int, int]] = {}  # time and size of each file that the bucket has
        self._uploaded: dict[str, tuple[float, float]] = {}  # when, and how long it took
        self._parts: dict[str, bytes] = {}  # of the metrics, as of the last `pull`
        self._number = self._first = self._offset = 0  # of the next part, and where it begins in the file
        self._lock = threading.Lock()

    def pull(self, folders: Sequence[str] = ("init",), largest: int = sys.maxsize) -> bool:
        """Downloads the files of the run that have changed: those at its top, and those in some folders.

        Args:
          folders: folders of the run to download too; 'metrics' also writes metrics.jsonl.
          largest: size in bytes above which files in these folders are skipped.

        Returns:
          Whether there is any object at the URL.

        Raises:
          InputError: if the store refuses.
        """
        with storage.answering(self.url, "run"), self._lock:
            try:
                return self._pull(folders, largest)
            except FileNotFoundError:  # deleted since it was listed, as merged parts are
                return self._pull(folders, largest)

    def _pull(self, folders: Sequence[str], largest: int) -> bool:
        root = self.url.partition("://")[2]
        entries = self._listed("")
        for folder in folders:
            entries |= {path: info for path, info in self._listed(folder).items() if info["size"] <= largest}
        changed = [path for path, info in entries.items() if storage.version(info) != self._remote.get(path)]
        if changed:
            targets = [str(self.path / path) for path in changed]
            self._files.get([f"{root}/{path}" for path in changed], targets)
        for path in changed:
            info, file = entries[path], self.path / path
            if (written := info.get("mtime") or info.get("LastModified")) is not None:
                os.utime(file, (written.timestamp(), written.timestamp()))  # `vaejax watch` reads it
            self._remote[path] = storage.version(info)
            if parts.number(path) is None:
                self._local[path] = _identity(file)
        if parts.FOLDER in folders:
            self._merge({path for path in entries if parts.number(path) is not None})
        return bool(entries) or self._files.isdir(f"{root}/checkpoints")

    def _listed(self, folder: str) -> dict[str, dict[str, Any]]:
        """The objects directly in the run's folder, or all in one of its folders, by relative path."""
        root = self.url.partition("://")[2]
        found: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            if folder:
                found = self._files.find(f"{root}/{folder}", detail=True)
            else:
                found = {info["name"]: info for info in self._files.ls(root, detail=True)}
        named = {path.removeprefix(f"{root}/"): info for path, info in found.items()}
        return {
            path: info
            for path, info in named.items()
            if info["type"] == "file" and not path.startswith(".") and not path.endswith("/")
        }

    def _merge(self, paths: set[str]) -> None:
        """Writes metrics.jsonl from its parts."""
        new = {path: (self.path / path).read_bytes() for path in paths - self._parts.keys()}
        self._parts = {path: content for path, content in (self._parts | new).items() if path in paths}
        text = parts.merged(self._parts)
        file = self.path / METRICS
        file.write_bytes(text)
        if self._parts:
            latest = max((self.path / path).stat().st_mtime for path in self._parts)
            os.utime(file, (latest, latest))
        self._number = max((parts.number(path) or 0 for path in paths), default=-1) + 1
        self._first, self._offset = parts.following(text.splitlines(keepends=True)), len(text)

    def merge_parts(self) -> None:
        """Replaces the parts of the metrics by one, if there are many; only the holder of the lease may."""
        if len(self._parts) > PARTS:
            old = sorted(self._parts)
            self._put(parts.name(self._number, 0), (self.path / METRICS).read_bytes())
            self._number += 1
            self._files.rm([f"{self.url}/{path}" for path in old])  # readers take the new part for all

    def restart(self, step: int) -> None:
        """Makes the metrics continue from a step: those of later steps have been dropped from the file.

        Args:
          step: step of the checkpoint that the run returns to; 0 drops everything.
        """
        with self._lock:
            self._first, self._offset = step + 1 if step else 0, (self.path / METRICS).stat().st_size

    def push(self, everything: bool = True) -> None:
        """Uploads the files that have changed.

        Args:
          everything: whether to upload all of them. Otherwise files that were uploaded a short while ago are
            left for a later call, which bounds the number of writes.

        Raises:
          OSError: if the store refuses, also after the request was repeated.
        """
        with self._lock:
            self._push_metrics()
            for path in self._paths():
                identity = _identity(self.path / path)
                if identity == self._local.get(path):
                    continue
                at, took = self._uploaded.get(path, (-1e9, 0.0))
                age = time.monotonic() - at
                if not everything and age < max(EVERY, PATIENCE * took):
                    continue
                time.sleep(max(0.0, 1.0 - age))  # a store takes one write of an object a second
                self._put(path, self.path / path)
                self._local[path] = identity

    def _paths(self) -> Iterator[str]:
        """The paths of the files to upload, but not of hidden and unfinished ones."""
        for root, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if root == str(self.path) and parts.FOLDER in folders:
                folders.remove(parts.FOLDER)
            for name in names:
                path = os.path.join(root, name)
                if not name.startswith(".") and not os.path.islink(path):
                    relative = os.path.relpath(path, self.path)
                    if relative != METRICS:
                        yield relative

    def _push_metrics(self) -> None:
        """Uploads the new lines of metrics.jsonl as a part."""
        try:
            with open(self.path / METRICS, "rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        text = text[: text.rfind(b"\n") + 1]
        if text:
            self._put(parts.name(self._number, self._first), text)
            self._number, self._offset = self._number + 1, self._offset + len(text)
            self._first = parts.following(text.splitlines(keepends=True))

    def _put(self, path: str, content: bytes | pathlib.Path) -> None:
        """Writes an object."""
        begin = time.monotonic()
        try:
            if isinstance(content, pathlib.Path) and content.stat().st_size > SMALL:
                size = content.stat().st_size
                self._files.put_file(str(content), f"{self.url}/{path}")
            else:
                content = content if isinstance(content, bytes) else content.read_bytes()
                size = len(content)
                self._files.pipe_file(f"{self.url}/{path}", content)
        except FileNotFoundError:
            if not isinstance(content, pathlib.Path) or content.exists():
                raise
            return  # a file that has just been deleted
        except Exception as error:  # gcsfs, s3fs, aiohttp and botocore raise many types
            raise OSError(f"{self.url}/{path}: {storage.reason(error, self.url)}") from error
        self.writes, self.bytes = self.writes + 1, self.bytes + size
        self._uploaded[path] = time.monotonic(), time.monotonic() - begin


def _identity(path: pathlib.Path) -> tuple[int, int]:
    """The time and size of a file; (0, 0) if it has been deleted."""
    try:
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    except FileNotFoundError:
        return 0, 0


_mirrors: dict[str, Mirror] = {}  # of the readers in this process


def local(name: str | os.PathLike) -> str:
    """The path of a run, one of its checkpoints, an export or a file of weights, on disk.

    What is at a URL is downloaded, without the checkpoints of a run and without large files in its folders.

    Raises:
      InputError: if nothing is at a URL, or the store refuses.
    """
    if not storage.is_url(name):
        return expand_home(name)
    url = os.fspath(name).rstrip("/")
    root, _, step = url.partition("/checkpoints/")
    if root not in _mirrors:
        refresh(root)
    path = _mirrors[root].path
    if step:
        return str(path / "checkpoints" / step)
    return str(path / path.name) if (path / path.name).is_file() else str(path)


def refresh(name: str | os.PathLike, folders: Sequence[str] = ("init",)) -> None:
    """Downloads what has changed in a run at a URL since the last call; nothing for a path; see `local`."""
    if not storage.is_url(name):
        return
    url = os.fspath(name).rstrip("/").partition("/checkpoints/")[0]
    mirror = _mirrors.get(url) or Mirror(url)
    if not mirror.pull(folders, SMALL):
        raise InputError(f"{url}: no such folder; accepted: the folder of a run or an export in a bucket")
    _mirrors[url] = mirror


def url_of(folder: pathlib.Path) -> str:
    """The URL that a folder mirrors; '' for any other folder."""
    try:
        return (folder / MARK).read_text()
    except OSError:
        return ""


def checkpoints(folder: str | os.PathLike) -> Any:
    """The folder of a run's checkpoints, which is in the bucket if `folder` is a mirror; an epath.Path."""
    from etils import epath  # after storage, which chooses its file system

    return epath.Path(url_of(pathlib.Path(folder)) or folder) / "checkpoints"


def saved_steps(folder: str | os.PathLike) -> list[int]:
    """The steps of the complete checkpoints of a run, in ascending order."""
    parent = checkpoints(folder)
    try:
        paths = [path for path in parent.iterdir() if path.name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(path.name) for path in paths if is_complete(path))


def unfinished(folder: str | os.PathLike) -> list[Any]:
    """The folders of checkpoints whose saving was killed."""
    try:
        paths = list(checkpoints(folder).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    partial = [path for path in paths if path.name.isdecimal() and not is_complete(path)]
    return partial + [path for path in paths if ".orbax-checkpoint-tmp" in path.name]


def is_complete(checkpoint: Any) -> bool:
    """Whether a checkpoint's folder, an epath.Path, was completed; on disk, Orbax then renames it."""
    if storage.is_url(checkpoint):
        return (checkpoint / COMMITTED).exists()
    return checkpoint.is_dir()
