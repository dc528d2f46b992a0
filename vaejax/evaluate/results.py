"""Results on disk: strict JSON whose bytes depend on the numbers alone, written whole or not at all."""

import json
import math
import os
import pathlib
import uuid
from typing import Any

import numpy as np


def write(path: str | os.PathLike, results: Any) -> None:
    """Writes JSON with sorted keys; no reader ever sees half of it.

    JSON has no NaN and no infinity: they are the strings "NaN", "Infinity" and "-Infinity", as in
    metrics.jsonl, which `float(value)` in Python and `Number(value)` in JavaScript read.

    Args:
      path: the file.
      results: dictionaries, lists, strings and numbers, NumPy's too.

    Raises:
      OSError: if it cannot be written.
    """
    text = json.dumps(_plain(results), indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    # A file's name that is no UTF-8 has lone surrogates, which JSON can only escape.
    write_whole(path, (text + "\n").encode("utf-8", "backslashreplace"))


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file that no reader ever sees half of.

    Raises:
      OSError: if it cannot be written.
    """
    path = pathlib.Path(path)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> Any:
    """Reads what `write` wrote; "Infinity" and the like stay strings.

    Raises:
      OSError: if there is no such file.
      ValueError: if it is damaged.
    """
    return json.loads(pathlib.Path(path).read_bytes())


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)):
        value = float(value)
        if math.isnan(value):
            return "NaN"
        return value if math.isfinite(value) else "Infinity" if value > 0 else "-Infinity"
    return value
