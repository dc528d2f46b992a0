"""The statistics of training latents that are stored with a checkpoint: checkpoints/STEP/latents.json."""

import os
import pathlib
from typing import Any

from vaejax import files
from vaejax.errors import InputError

FILE = "latents.json"


def store(workdir: str | os.PathLike, step: int, statistics: dict[str, Any]) -> None:
    """Stores statistics atomically in the folder of a checkpoint, so they are deleted with the checkpoint.

    Args:
      workdir: folder of the run.
      step: a step with a completed checkpoint.
      statistics: values that `files.write_json` can write, among them 'mean' and 'std' of each channel, (c,).

    Raises:
      InputError: if there is no such checkpoint, or its folder cannot be written.
    """
    path = _path(workdir, step)
    try:
        files.write_json(path, statistics)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; accepted: a writable checkpoint folder") from error


def load(workdir: str | os.PathLike, step: int) -> dict[str, Any] | None:
    """The statistics stored with a checkpoint; None if there are none.

    Raises:
      InputError: if the file is damaged or cannot be read.
    """
    path = _path(workdir, step)
    try:
        return files.read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); if the file is damaged, delete it, and vaejax evaluate"
            " --checkpoint=RUN writes it again"
        ) from error


def _path(workdir: str | os.PathLike, step: int) -> pathlib.Path:
    return pathlib.Path(workdir) / "checkpoints" / str(step) / FILE
