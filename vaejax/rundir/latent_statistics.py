"""The statistics of training latents that are stored with a checkpoint: checkpoints/STEP/latents.json."""

import json
import os
import pathlib
from typing import Any

from vaejax import files
from vaejax.errors import InputError
from vaejax.rundir import mirror
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import storage

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
        if storage.is_url(path):
            with storage.new_file(path) as file:
                file.write(files.json_bytes(statistics))
        else:
            files.write_json(path, statistics)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; accepted: a writable checkpoint folder") from error


def load(workdir: str | os.PathLike, step: int) -> dict[str, Any] | None:
    """The statistics of a checkpoint's latents; None if there are none.

    A frozen encoder has those of the model that its run started from, because diffusion models normalize with
    them. Otherwise they are stored with the checkpoint.

    Raises:
      InputError: if the file is damaged or cannot be read.
    """
    path = _path(workdir, step)
    try:
        return json.loads(storage.read(path))
    except (FileNotFoundError, NotADirectoryError):
        return _inherited(RunFolder(pathlib.Path(workdir)), step)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); if the file is damaged, delete it, and vaejax evaluate"
            " --checkpoint=RUN writes it again"
        ) from error


def _inherited(run: RunFolder, step: int) -> dict[str, Any] | None:
    """The statistics of the model that a run with a frozen encoder started from, if they are known."""
    try:
        trains, latents = run.read_config().optim.train, files.read_json(run.init / "config.json")["latents"]
    except (InputError, OSError, ValueError, KeyError):
        return None
    if "encoder" in trains or latents["mean"] is None:
        return None
    values = {"mean": latents["mean"], "std": latents["std"]}
    return values | {"buckets": {}, "step": step, "inherited": True}


def _path(workdir: str | os.PathLike, step: int) -> str:
    return str(mirror.checkpoints(workdir) / str(step) / FILE)
