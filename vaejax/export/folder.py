"""The folder of an export: its files, and when it may be replaced."""

import pathlib
from typing import Any, NamedTuple

from vaejax import files
from vaejax.codec import published
from vaejax.codec.load import CONFIG, FORMAT, WEIGHTS
from vaejax.errors import InputError
from vaejax.rundir.folder import RunFolder

CHECKPOINT, CARD = "checkpoint", "README.md"
TORCH_FORMAT, MODULE = "vaejax.torch", "autoencoder.py"  # of an export for PyTorch
ORIGINAL = "vae.pth"  # of an export with the original names
MARK = "<!-- written by vaejax.export -->"  # in the cards of exports without a format of their own
FILES = CONFIG, WEIGHTS, CARD, CHECKPOINT, MODULE, ORIGINAL, published.WEIGHTS, "__pycache__"  # of the module


class Exported(NamedTuple):
    """A finished export.

    Attributes:
      name: the folder, as the user named it.
      config: contents of the export's config.json, and 'rounding', the result of `verify.check_codec`.
      size: total size of all files in bytes.
      seconds: duration of the export.
    """

    name: str
    config: dict[str, Any]
    size: int
    seconds: float


def check_replaceable(folder: pathlib.Path, out: str, name: str) -> None:
    """Raises InputError if `folder` is the folder of the source `name` or has files that no export wrote.

    `out` is `folder` as the user wrote it, for the message.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"OUT={out}: {error.strerror}; accepted: a writable folder") from error
    accepted = "accepted: a new or empty folder, or an earlier export, which is replaced"
    if folder == RunFolder(name).path.resolve():
        raise InputError(f"OUT={out}: the same folder as RUN; {accepted}")
    if names and not _is_export(folder):
        raise InputError(f"OUT={out}: contains other files, such as {names[0]}; {accepted}")
    others = [name for name in names if name not in FILES and not name.endswith(".stablehlo")]
    if others:
        raise InputError(f"OUT={out}: contains {others[0]}, which no export wrote; {accepted}")


def _is_export(folder: pathlib.Path) -> bool:
    try:
        if MARK in (folder / CARD).read_text(encoding="utf-8"):
            return True
        return files.read_json(folder / CONFIG)["format"] in (FORMAT, TORCH_FORMAT)
    except (OSError, ValueError, KeyError, TypeError):
        return False
