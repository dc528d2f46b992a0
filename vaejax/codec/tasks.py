"""Plans which files a command reads and writes: for a file, a folder or a pipe."""

import contextlib
import os
import pathlib
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from PIL import Image

from vaejax.codec import media_writer
from vaejax.codec.latent_file import EXTENSION, LatentFile
from vaejax.data import media
from vaejax.errors import InputError
from vaejax.files import expand_home
from vaejax.runtime import storage

PIPE = "-"
ENCODE, DECODE, RECONSTRUCT = "encode", "decode", "reconstruct"
LATENT = "latent"  # the format of one latent file for each photo and clip


class Task(NamedTuple):
    """One file to read and one to write.

    Attributes:
      source: photo or clip to read, a `Content`, or path of a latent file; or a function that returns it when
        the task begins.
      target: file to write.
      name: name of the source in messages.
      kind: 'image' or 'video' for a photo or a clip; '' for a latent file.
      extension: extension of the target's format.
      keep: whether to leave an existing target alone.
      refusal: reason why the source cannot be read or the target cannot be written; or ''.
    """

    source: Any
    target: pathlib.Path
    name: str
    kind: str
    extension: str
    keep: bool
    refusal: str = ""


@contextlib.contextmanager
def open_tasks(
    action: str, source: str, target: str, shard: tuple[int, int] = (0, 1), channels: int = 3
) -> Iterator[list[Task]]:
    """Yields the tasks of a command; when the context ends, writes the result to stdout if the target is '-'.

    Args:
      action: 'encode', 'decode' or 'reconstruct'.
      source: a file, a folder or '-' for stdin.
      target: a file, a folder or '-' for stdout.
      shard: (I, N), which selects files I, I + N, I + 2N, ... of a folder, counted from 0.
      channels: pixel channels of the model, on which the formats of decoded files depend.

    Raises:
      InputError: if source or target cannot be used.
      BrokenPipeError: if the reader of stdout is gone.
    """
    for argument, path in (("IN", source), ("OUT", target)):
        if storage.is_url(path):
            raise InputError(
                f"{argument} = {path}: a URL; accepted: a file or folder on disk, or - for a pipe"
            )
    source, target = (path if path == PIPE else expand_home(path) for path in (source, target))
    with tempfile.TemporaryDirectory() if PIPE in (source, target) else contextlib.nullcontext("") as spool:
        if source != PIPE and os.path.isdir(source):
            yield _folder_tasks(action, pathlib.Path(source), target, shard, channels)
            return
        if shard != (0, 1):
            raise InputError(f"--shard: IN = {source} is not a folder; accepted: a folder")
        task = _file_task(action, source, target, pathlib.Path(spool), channels)
        yield [task]
        if target == PIPE and task.target.exists():
            _write_to_stdout(task.target)


def _write_to_stdout(path: pathlib.Path) -> None:
    try:  # through a separate file object, so that Python does not try to flush the rest again on exit
        with open(path, "rb") as file, open(sys.stdout.fileno(), "wb", closefd=False) as out:
            shutil.copyfileobj(file, out)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"stdout: {error.strerror}; accepted: a writable stdout") from error


def _file_task(action: str, source: str, target: str, spool: pathlib.Path, channels: int) -> Task:
    """The task for a file or a pipe; pipes go through files in the folder `spool`."""
    path, name = _source_file(source, spool)
    kind = ""
    if action != DECODE:
        kind = media.kind_of(path) or ("image" if _is_photo(path) else "video")
    if target == PIPE:
        written = _target_name(action, path, path.name, kind, channels)
        if action == DECODE:
            facts = LatentFile(path, name).facts
            written = facts.source + media_writer.extension_for(facts.source, facts.kind, channels)
        to = spool / f"out{pathlib.PurePath(written).suffix}"
        return Task(path, to, name, kind, to.suffix.lower(), keep=False)
    if target.endswith("/") or os.path.isdir(target):
        to = make_folder(target) / _target_name(action, path, path.name, kind, channels)
        return Task(path, to, name, kind, to.suffix.lower(), keep=True)
    to = pathlib.Path(target)
    accepted = [EXTENSION]
    if action != ENCODE:
        accepted = [name for kind in ("image", "video") for name in media_writer.accepted(kind, channels)]
    if to.suffix.lower() not in accepted:
        names = ", ".join(accepted)
        raise InputError(
            f"OUT = {target}; accepted: an existing folder, a new folder whose name ends in /, - for stdout,"
            f" or a file whose name ends in {names}"
        )
    if not to.absolute().parent.is_dir():
        raise InputError(f"OUT = {target}: its folder does not exist; accepted: a file in an existing folder")
    if special := _special(to):
        raise InputError(f"OUT = {target}: {special}; accepted: a file, or - for stdout")
    if to.exists() and to.samefile(path):
        raise InputError(f"OUT = {target}: the same file as IN; accepted: another file")
    return Task(path, to, name, kind, to.suffix.lower(), keep=False)


def _source_file(source: str, spool: pathlib.Path) -> tuple[pathlib.Path, str]:
    """The file to read, and its name in messages; stdin is copied to a file."""
    if source == PIPE:
        path = spool / "in"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
        return path, "stdin"
    path = pathlib.Path(source)
    if special := _special(path):
        raise InputError(f"IN = {source}: {special}; accepted: a file, a folder, or - for stdin")
    if not path.is_file():
        raise InputError(f"IN = {source}: no such file or folder; accepted: a file, a folder, or - for stdin")
    return path, source


def _folder_tasks(
    action: str, source: pathlib.Path, target: str, shard: tuple[int, int], channels: int
) -> list[Task]:
    if target == PIPE or os.path.isfile(target):
        raise InputError(f"OUT = {target}: not a folder, although IN = {source} is; accepted: a folder")
    out = make_folder(target)
    if action == RECONSTRUCT and out.samefile(source):
        raise InputError(f"OUT = {target}: the same folder as IN; accepted: another folder")
    sources: list[tuple[pathlib.Path, str]] = []
    unreadable: list[OSError] = []
    others: Counter[str] = Counter()
    for path in _walk(source, out, unreadable):
        kind = media.kind_of(path) or ""
        if path.suffix == EXTENSION if action == DECODE else kind:
            sources.append((path, kind))
        elif action != DECODE and path.suffix != EXTENSION:
            others[path.suffix.lower()] += 1
    if not sources and not unreadable:
        what = f"a {EXTENSION} file" if action == DECODE else "a photo or a clip"
        reasons = "; ".join([f"contains nothing to {action}", *media.passed_over(others)])
        raise InputError(f"IN = {source}: {reasons}; accepted: a folder with {what}")
    for line in media.passed_over(others):
        print(line, file=sys.stderr)
    by_path: dict[pathlib.Path, Task] = {}
    for path, kind in sources:
        name = str(path.relative_to(source))
        if special := _special(path):
            by_path[path] = Task(path, out / name, name, "", "", True, f"{special}; accepted: a file")
            continue
        to = out / _target_name(action, path, name, kind, channels)
        task = Task(path, to, name, "" if action == DECODE else kind, to.suffix.lower(), keep=True)
        other = by_path.setdefault(to, task)
        if other is not task:
            refusal = f"would overwrite the output of {other.name}, {to}; accepted: a different file name"
            by_path[path] = task._replace(refusal=refusal)
    for error in unreadable:
        path = pathlib.Path(error.filename)
        name, refusal = str(path.relative_to(source)), f"{error.strerror}; accepted: a readable folder"
        by_path[path] = Task(path, out / path.name, name, "", "", True, refusal)
    return list(by_path.values())[shard[0] :: shard[1]]


def _target_name(action: str, path: pathlib.Path, name: str, kind: str, channels: int) -> str:
    """The name or relative path of the target: `name`, which may contain folders, with the right extension.

    `path` is the file to read. A latent file is opened if its name does not show whether it is a photo or a
    clip.
    """
    if action == ENCODE:
        return name + EXTENSION
    if action == DECODE:
        name = name.removesuffix(EXTENSION)
        kind = media.kind_of(name) or _kind_of_latent(path)
    return name + media_writer.extension_for(name, kind, channels)


def _kind_of_latent(path: pathlib.Path) -> str:
    try:
        return LatentFile(path).facts.kind
    except InputError:  # decoding reports the error
        return "video"


def _walk(folder: pathlib.Path, out: pathlib.Path, unreadable: list[OSError]) -> Iterator[pathlib.Path]:
    """Yields the files of a folder tree, except hidden ones, in the same order on all machines.

    Files in `out` are skipped, unless `out` is `folder` itself. The error of each folder that cannot be read
    is appended to `unreadable`.
    """
    seen = set() if out.samefile(folder) else {_identity(out)}
    for root, folders, names in os.walk(folder, onerror=unreadable.append, followlinks=True):
        if _identity(root) in seen:  # `out` itself, or a link to a folder that was visited
            folders.clear()
            continue
        seen.add(_identity(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield pathlib.Path(root, name)


def _identity(folder: str | os.PathLike) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def make_folder(name: str) -> pathlib.Path:
    """Creates the output folder OUT if it is missing; raises InputError if that fails."""
    folder = pathlib.Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"OUT = {name}: {error.strerror}; accepted: a writable folder") from error
    return folder


def _special(path: pathlib.Path) -> str:
    """The kind of a path that may block forever when opened, such as 'a named pipe'; '' for all others."""
    try:
        mode = os.stat(path).st_mode
    except OSError:  # opening the path reports the error
        return ""
    kinds = {
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return kinds.get(stat.S_IFMT(mode), "")


def _is_photo(path: pathlib.Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # for damaged files, Pillow raises exceptions of any type
        return False
