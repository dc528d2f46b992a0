"""Whole training runs for benchmarks, and their metrics."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

SIGNED = ("nll", "adversarial")  # terms that may be negative; see `unit`


def train(config: str, workdir: pathlib.Path, settings: Mapping[str, object], more: Sequence[str] = ()):
    """Runs vaejax.main with --config.KEY=VALUE for every setting, and returns its metrics as `read` does."""
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "vaejax.main", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, *flags, *more], check=True)
    return read(workdir / "metrics.jsonl")


def read(path: pathlib.Path) -> dict[int, dict[str, float]]:
    """Returns the numbers of metrics.jsonl by step and 'split/bucket/name'."""
    steps = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        at, split, bucket = (row.pop(key) for key in ("step", "split", "bucket"))
        row.pop("verdict", None)
        steps.setdefault(at, {}).update({f"{split}/{bucket}/{name}": value for name, value in row.items()})
    return dict(sorted(steps.items()))


def loss_terms(steps: Mapping[int, Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns the values of every loss term, train/BUCKET/TERM, in order of steps; their sum is left out."""
    terms = {}
    for row in steps.values():
        for name, value in row.items():
            if name.startswith("train/") and "/all/" not in name and not name.endswith("/loss"):
                terms.setdefault(name, []).append(value)
    return terms


def unit(name: str, value: float) -> float:
    """Returns the divisor of a difference from `value`: its size, at least 1 if the term may be negative."""
    # Not 0, because a term can be 0, as `temporal` is for images.
    smallest = 1.0 if name.rsplit("/", 1)[1].startswith(SIGNED) else 1e-9
    return max(abs(value), smallest)
