"""A run seen from outside: its folder and its configuration."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vaejax.config import schema as configuration
from vaejax.errors import InputError


def folder(name: str) -> pathlib.Path:
    """The --workdir that 'RUN' or 'RUN/checkpoints/STEP' names."""
    path = pathlib.Path(name).expanduser().absolute()
    return path.parent.parent if path.parent.name == "checkpoints" and path.name.isdigit() else path


def step(name: str) -> int | None:
    """The STEP of 'RUN/checkpoints/STEP'."""
    path = pathlib.Path(name).expanduser().absolute()
    return None if folder(name) == path else int(path.name)


def config(name: str) -> ConfigDict:
    """The configuration of a run, keys that it is too old for at their defaults.

    Raises:
      InputError: for a folder without a run.
    """
    path = folder(name) / "config.json"
    try:
        saved = json.loads(path.read_text())
        saved["model"]  # of an older run any other key may be missing
        return ConfigDict(_merged(configuration.defaults().to_dict(), saved, ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "describes no run"
        raise InputError(f"{path}: {reason}; accepted: the --workdir of a run") from error


def _merged(default: Mapping[str, Any], saved: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """`default` with the values of `saved`; what a person names, sources and buckets, is all of `saved`."""
    merged = {}
    for name, value in default.items():
        if isinstance(value, Mapping) and prefix + name not in configuration.OPEN_SECTIONS:
            merged[name] = _merged(value, saved.get(name, {}), f"{prefix}{name}.")
        else:
            found = saved.get(name, value)
            merged[name] = tuple(found) if isinstance(found, list) else found
    return merged
