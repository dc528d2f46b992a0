"""Whole training runs for benchmarks, and what they wrote down."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

SIGNED = ("nll", "adversarial")  # terms whose zero is arbitrary: their unit is at least 1


def train(config: str, workdir: pathlib.Path, settings: Mapping[str, object], more: Sequence[str] = ()):
    """Runs vaejax.main with --config.KEY=VALUE for all settings; returns what `read` gives."""
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    command = [sys.executable, "-m", "vaejax.main", f"--config={config}", f"--workdir={workdir}"]
    subprocess.run([*command, *flags, *more], check=True)
    return read(workdir / "metrics.jsonl")


def read(path: pathlib.Path) -> dict[int, dict[str, float]]:
    """The numbers of metrics.jsonl by step and 'split/bucket/name'."""
    steps = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        at, split, bucket = (row.pop(key) for key in ("step", "split", "bucket"))
        steps.setdefault(at, {}).update({f"{split}/{bucket}/{name}": value for name, value in row.items()})
    return dict(sorted(steps.items()))


def loss_terms(steps: Mapping[int, Mapping[str, float]]) -> dict[str, list[float]]:
    """The values, in order, of every bucket's loss terms: train/BUCKET/TERM, but not their sum."""
    terms = {}
    for row in steps.values():
        for name, value in row.items():
            if name.startswith("train/") and "/all/" not in name and not name.endswith("/loss"):
                terms.setdefault(name, []).append(value)
    return terms


def unit(name: str, value: float) -> float:
    """What a difference from `value` is measured in: its size, and at least 1 for a term of either sign."""
    # Above 0, for a term may be nothing: `temporal` of images.
    smallest = 1.0 if name.rsplit("/", 1)[1].startswith(SIGNED) else 1e-9
    return max(abs(value), smallest)
