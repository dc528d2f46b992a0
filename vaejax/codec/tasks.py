"""What is to be done for a file, a folder or a pipe: which file becomes which."""

import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

from vaejax.codec import media_writer as clip_writer
from vaejax.codec.latent_file import EXTENSION, LatentFile
from vaejax.data import media
from vaejax.errors import InputError

PIPE = "-"
ENCODE, DECODE, RECONSTRUCT = "encode", "decode", "reconstruct"


class Task(NamedTuple):
    """A file to make.

    Attributes:
      source: to read.
      target: to write.
      name: of the source, for messages.
      kind: of a photo or a clip, 'image' or 'video'; of a latent file ''.
      extension: of the format of the target.
      keep: whether a target that is there already is left alone.
      refusal: why it cannot be made, or ''.
    """

    source: pathlib.Path
    target: pathlib.Path
    name: str
    kind: str
    extension: str
    keep: bool
    refusal: str = ""


@contextlib.contextmanager
def tasks(action: str, source: str, target: str, shard: tuple[int, int] = (0, 1)) -> Iterator[list[Task]]:
    """The tasks of a command; on leaving, what goes to stdout is written there.

    Args:
      action: 'encode', 'decode' or 'reconstruct'.
      source: a file, a folder or '-'.
      target: likewise.
      shard: (I, N): of a folder every Nth file from the Ith, counted from 0.

    Raises:
      InputError: one line, if source or target cannot be used.
      BrokenPipeError: if nobody reads stdout any more.
    """
    with tempfile.TemporaryDirectory() if PIPE in (source, target) else contextlib.nullcontext("") as spool:
        if source != PIPE and os.path.isdir(source):
            yield _of_folder(action, pathlib.Path(source), target, shard)
            return
        if shard != (0, 1):
            raise InputError("--shard; accepted: with a folder")
        task = _of_file(action, source, target, pathlib.Path(spool))
        yield [task]
        if target == PIPE and task.target.exists():
            _to_stdout(task.target)


def _to_stdout(path: pathlib.Path) -> None:
    try:  # by a file of its own: what could not be written is not tried again at the end of Python
        with open(path, "rb") as file, open(sys.stdout.fileno(), "wb", closefd=False) as out:
            shutil.copyfileobj(file, out)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InputError(f"stdout: {error.strerror}; accepted: one that can be written") from error


def _of_file(action: str, source: str, target: str, spool: pathlib.Path) -> Task:
    name = source
    if source == PIPE:
        name, path = "stdin", spool / "in"
        with open(path, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file)
    else:
        path = pathlib.Path(source).expanduser()
        if not path.is_file():
            raise InputError(f"{source}: no such file or folder; accepted: a file, a folder or -")
    kind = ""
    if action != DECODE:
        kind = media.kind_of(path) or ("image" if _is_photo(path) else "video")
    into_folder = target != PIPE and (target.endswith("/") or os.path.isdir(os.path.expanduser(target)))
    if target == PIPE or into_folder:
        made = _made(action, path, path.name, kind)
        if target == PIPE and action == DECODE:
            facts = LatentFile(path, name).facts
            made = facts.source + clip_writer.extension_for(facts.source, facts.kind)
        to = spool / f"out{pathlib.PurePath(made).suffix}" if target == PIPE else _folder(target) / made
    else:
        to = pathlib.Path(target).expanduser()
        accepted = (EXTENSION,) if action == ENCODE else (*clip_writer.PHOTOS, *clip_writer.CLIPS)
        if to.suffix.lower() not in accepted:
            names = ", ".join(accepted)
            raise InputError(f"{target}; accepted: a folder that is there, - or a name in {names}")
        if not to.absolute().parent.is_dir():
            raise InputError(f"{target}: no such folder; accepted: one that is there")
        if to.exists() and to.samefile(path):
            raise InputError(f"{target} is what is read; accepted: another file")
    return Task(path, to, name, kind, to.suffix.lower(), into_folder)


def _of_folder(action: str, source: pathlib.Path, target: str, shard: tuple[int, int]) -> list[Task]:
    if target == PIPE or os.path.isfile(target):
        raise InputError(f"{target}: {source} is a folder; accepted: a folder")
    out = _folder(target)
    if action == RECONSTRUCT and out.samefile(source):
        raise InputError(f"{target} is what is read; accepted: another folder")
    found, made, closed = [], {}, []
    for path in _walk(source, out, closed):
        kind = media.kind_of(path) or ""
        if path.suffix == EXTENSION if action == DECODE else kind:
            found.append((path, kind))
    if not found and not closed:
        what = f"a {EXTENSION} file" if action == DECODE else "a photo or a clip"
        raise InputError(f"{source}: holds nothing to {action}; accepted: a folder with {what} in it")
    for path, kind in found:
        name = path.relative_to(source)
        to = out / _made(action, path, str(name), kind)
        task = Task(path, to, str(name), "" if action == DECODE else kind, to.suffix.lower(), True)
        other = made.setdefault(to, task)
        if other is not task:
            made[path] = task._replace(refusal=f"would become {to}, as {other.name}; accepted: other names")
    for error in closed:
        path = pathlib.Path(error.filename)
        refusal = f"{error.strerror}; accepted: a folder that can be read"
        made[path] = Task(path, out / path.name, str(path.relative_to(source)), "", "", True, refusal)
    return list(made.values())[shard[0] :: shard[1]]


def _made(action: str, path: pathlib.Path, name: str, kind: str) -> str:
    """What the file of this name becomes."""
    if action == ENCODE:
        return name + EXTENSION
    if action == DECODE:
        name = name.removesuffix(EXTENSION)
        kind = media.kind_of(name) or _kind_inside(path)
    return name + clip_writer.extension_for(name, kind)


def _kind_inside(path: pathlib.Path) -> str:
    try:
        return LatentFile(path).facts.kind
    except InputError:  # the same is told when it is decoded
        return "video"


def _walk(folder: pathlib.Path, out: pathlib.Path, closed: list[OSError]) -> Iterator[pathlib.Path]:
    """Every file in a folder, in an order that every machine agrees on; what lies in `out` is not read.

    Why a folder in it cannot be read is added to `closed`.
    """
    seen = set() if out.samefile(folder) else {_identity(out)}
    for root, folders, names in os.walk(folder, onerror=closed.append, followlinks=True):
        if _identity(root) in seen:  # also where a link leads back
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


def _folder(name: str) -> pathlib.Path:
    folder = pathlib.Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}; accepted: a folder that can be written") from error
    return folder


def _is_photo(path: pathlib.Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # a damaged file makes Pillow raise anything
        return False
