"""Files wherever they are: on disk, or as objects at gs://BUCKET/... and s3://BUCKET/...

Objects are read and listed by fsspec's gcsfs and s3fs, which retry failed requests. Both find credentials as
their cloud's own tools do.
"""

import contextlib
import errno
import hashlib
import importlib.util
import io
import logging
import os
import pathlib
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from vaejax import files
from vaejax.errors import InputError, one_line
from vaejax.runtime import cache

# Scheme of a URL -> the package that reads it, vaejax's extra, and how to get credentials.
SCHEMES = {
    "gs": ("gcsfs", "gcs", "gcloud auth application-default login"),
    "s3": ("s3fs", "s3", "aws configure, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
}


# Orbax's paths would use TensorFlow's file systems if TensorFlow is installed, and fsspec's otherwise.
os.environ.setdefault("EPATH_USE_TF", "0")
# Otherwise gcsfs asks for the kind of a bucket before every request.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # errors are raised too, and become one line


class Entry(NamedTuple):
    """A file of a folder tree.

    Attributes:
      path: path relative to the folder, with forward slashes.
      size: bytes.
      version: changes with the content: modification time in ns on disk, a hash of the object's version in a
        bucket.
    """

    path: str
    size: int
    version: int


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as gs://BUCKET/FOLDER."""
    scheme, separator, _ = os.fspath(path).partition("://")
    return bool(separator) and scheme.isalnum()


def located(path: str | os.PathLike) -> str:
    """The absolute path of a folder or file, or its URL, without a final '/'."""
    return str(path).rstrip("/") if is_url(path) else os.path.abspath(files.expand_home(path))


def join(folder: str, path: str) -> str:
    """The path or URL of a file in a folder; `path` itself if it is absolute or a URL."""
    if is_url(path) or not path:
        return path
    return f"{folder.rstrip('/')}/{path}" if is_url(folder) else os.path.join(folder, path)


def is_folder(path: str, name: str) -> bool:
    """Whether a folder exists; in a bucket, whether any object's name begins with PATH/.

    Args:
      path: path or URL.
      name: setting or argument with this path, for error messages.

    Raises:
      InputError: if the store refuses to answer.
    """
    if not is_url(path):
        return os.path.isdir(path)
    with answering(path, name):
        return file_system(path, name).isdir(path)


def exists(path: str, name: str) -> bool:
    """Whether a file exists; `name` is the setting with its path.

    Raises:
      InputError: if the store refuses to answer.
    """
    if not is_url(path):
        return os.path.isfile(path)
    with answering(path, name):
        return file_system(path, name).exists(path)


def on_disk(path: str) -> str:
    """The path of a file on disk: its own, or that of a copy of the object in vaejax's cache."""
    if not is_url(path):
        return path
    identity = f"{path} {entry(path).version}"
    copy = cache.folder() / "objects" / hashlib.sha256(identity.encode()).hexdigest()[:32]
    if not copy.exists():
        with new_file(str(copy)) as file, file_system(path).open(path, "rb", block_size=2**24) as source:
            shutil.copyfileobj(source, file, 2**24)
    return str(copy)


def read(path: str, start: int = 0, length: int | None = None) -> bytes:
    """Reads a file, or `length` bytes of it from `start`; fewer if it ends before.

    Raises:
      OSError: if it cannot be read.
    """
    end = None if length is None else start + length
    if not is_url(path):
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(-1 if length is None else length)
    with _raising_os_errors(path):
        return file_system(path).cat_file(path, start=start, end=end)


@contextlib.contextmanager
def _raising_os_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # gcsfs, s3fs, aiohttp and botocore raise many types
        raise OSError(errno.EIO, reason(error, path)) from error


@contextlib.contextmanager
def new_file(path: str) -> Iterator[BinaryIO]:
    """Opens a file to write; it replaces the one at `path` if the block succeeds. Folders are created.

    Raises:
      OSError: if it cannot be written.
    """
    if is_url(path):
        content = io.BytesIO()
        yield content
        with _raising_os_errors(path):
            file_system(path).pipe_file(path, content.getvalue())
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    files.sweep([pathlib.Path(path)])
    with files.atomic_file(path) as file:
        yield file


@contextlib.contextmanager
def staged(folder: str) -> Iterator[pathlib.Path]:
    """The path of an output folder; for a URL, a temporary one, uploaded if the block succeeds.

    A file config.json goes up last, because readers take it for the sign of a whole export.

    Args:
      folder: path or URL, whose last part names the temporary folder too.

    Raises:
      OSError: if a file cannot be uploaded.
    """
    if not is_url(folder):
        yield pathlib.Path(files.expand_home(folder))
        return
    with tempfile.TemporaryDirectory(prefix="vaejax-") as temporary:
        stage = pathlib.Path(temporary) / folder.rstrip("/").rpartition("/")[2]
        yield stage
        paths = [path for path in sorted(stage.rglob("*")) if path.is_file()]
        for path in sorted(paths, key=lambda path: path == stage / "config.json"):
            with _raising_os_errors(folder):
                file_system(folder).put_file(str(path), join(folder, path.relative_to(stage).as_posix()))


def move(source: str, target: str) -> None:
    """Moves a folder; in a bucket, object by object, copied before any is deleted.

    Raises:
      OSError: if it cannot be moved.
    """
    if is_url(source):
        with _raising_os_errors(source):
            file_system(source).mv(source, target, recursive=True)
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    os.rename(source, target)


def remove_file(path: str) -> None:
    """Removes a file.

    Raises:
      OSError: if it cannot be removed.
    """
    if is_url(path):
        file_system(path).rm_file(path)
    else:
        os.remove(path)


def remove_folder(path: str) -> None:
    """Removes a folder and everything in it.

    Raises:
      OSError: if it cannot be removed.
    """
    if is_url(path):
        file_system(path).rm(path, recursive=True)
    else:
        shutil.rmtree(path)


def walk(folder: str, name: str) -> Iterator[Entry]:
    """Lists the files of a folder tree, or the objects below a URL.

    Hidden files, and those in hidden folders, are left out; their names begin with '.'. On disk, links are
    followed, but no folder is entered twice. Only one folder is listed at a time.

    Args:
      folder: path or URL of the folder.
      name: setting or argument with this path, for error messages.

    Raises:
      InputError: if a store refuses, or has no such bucket.
    """
    if not is_url(folder):
        yield from _walk_disk(folder)
        return
    with answering(folder, name):
        system = file_system(folder, name)
        root = folder.partition("://")[2].rstrip("/") + "/"
        # `find` would hold all objects. By itself, `walk` leaves out folders that cannot be listed.
        for place, folders, names in system.walk(folder, detail=True, on_error=_unless_missing):
            for name in [name for name in folders if name.startswith(".")]:
                del folders[name]
            inner = f"{place}/".removeprefix(root)
            for name, info in sorted(names.items()):
                if name and not name.startswith("."):
                    yield Entry(inner + name, info["size"], version(info))


def _unless_missing(error: Exception) -> None:
    """Raises the error of a folder that cannot be listed; one without objects has none."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _walk_disk(folder: str) -> Iterator[Entry]:
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = os.path.relpath(root, folder).replace(os.sep, "/")
        inner = "" if inner == "." else f"{inner}/"
        for name in names:
            path = os.path.join(root, name)
            if name.startswith("."):
                continue
            try:
                status = os.stat(path)
            except OSError:  # a dangling link
                continue
            if stat.S_ISREG(status.st_mode):
                relative = os.fsencode(inner + name).decode("utf-8", "replace")
                yield Entry(relative, status.st_size, status.st_mtime_ns)


def entry(path: str) -> Entry:
    """The size and version of one file; its path is empty.

    Raises:
      OSError: if it does not exist.
    """
    if is_url(path):
        with _raising_os_errors(path):
            info = file_system(path).info(path)
        return Entry("", info["size"], version(info))
    status = os.stat(path)
    return Entry("", status.st_size, status.st_mtime_ns)


def version(info: dict[str, Any]) -> int:
    """A number that differs for other contents of an object, whose `info` is fsspec's."""
    tag = info.get("etag") or info.get("ETag") or info.get("md5Hash") or info.get("mtime")
    return zlib.crc32(str(tag).encode())


def file_system(url: str, name: str = "") -> Any:
    """The file system of a URL, by fsspec.

    Raises:
      InputError: if its scheme is unknown, or its package is not installed.
    """
    import fsspec
    import fsspec.config

    scheme, label = url.partition("://")[0], f"{name} = " if name else ""
    if scheme not in SCHEMES:
        accepted = ", ".join(f"{known}://" for known in SCHEMES)
        raise InputError(f"{label}{url}: unknown scheme {scheme}://; accepted: {accepted}, or a path")
    package, extra, _ = SCHEMES[scheme]
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"{label}{url}: {package} is not installed; accepted: pip install 'vaejax[{extra}]', or a path"
        )
    # Other processes write to the same buckets, so neither we nor Orbax, which takes the default, may cache.
    fsspec.config.conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    return fsspec.filesystem(scheme)


@contextlib.contextmanager
def answering(url: str, name: str) -> Iterator[None]:
    """A context that turns the errors of a store into an InputError that names the setting and the reason."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # gcsfs, s3fs, aiohttp and botocore raise many types
        raise InputError(f"{name} = {url}: {reason(error, url)}") from error


def reason(error: BaseException, url: str) -> str:
    """Why a store refused, in one line, with what to do."""
    scheme, _, rest = url.partition("://")
    bucket, login = rest.split("/")[0], SCHEMES[scheme][2]
    text = one_line(error)
    if isinstance(error, FileNotFoundError) or getattr(error, "code", None) == 404:
        return "no such bucket or object; accepted: an existing folder in a bucket"
    if (
        type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError")
        or "Anonymous caller" in text
    ):
        return f"no credentials found; accepted: {login}"
    refused = isinstance(error, PermissionError) or text.startswith("Forbidden")  # the latter of gcsfs
    if refused or getattr(error, "code", None) in (401, 403):
        return f"permission denied ({text}); accepted: credentials for {bucket} ({login})"
    if "region" in text.lower() or "PermanentRedirect" in text or "endpoint" in text.lower():
        return f"wrong region or endpoint ({text}); accepted: AWS_DEFAULT_REGION of the bucket {bucket}"
    return f"{text}; accepted: a bucket that answers"
