"""Whole training runs for benchmarks, and their metrics."""

import json
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from vaejax import files
from vaejax.errors import FAILED

SIGNED = ("nll", "adversarial")  # terms that may be negative; see `unit`


def train(
    config: str,
    workdir: pathlib.Path,
    settings: Mapping[str, object],
    more: Sequence[str] = (),
    last: Mapping[str, object] | None = None,
    may_fail: bool = False,
) -> dict[int, dict[str, float]]:
    """Runs vaejax.main.

    Args:
      config: name of the configuration.
      workdir: folder of the run, which continues if it has begun.
      settings: values by key, for --config.KEY=VALUE.
      more: flags that override them.
      last: values by key that override both.
      may_fail: whether the training may diverge.

    Returns:
      The metrics, see `read`.
    """
    command = [sys.executable, "-m", "vaejax.main", f"--config={config}", f"--workdir={workdir}"]
    first, then = (
        [f"--config.{key}={value}" for key, value in (values or {}).items()] for values in (settings, last)
    )
    run([*command, *first, *more, *then], (0, FAILED) if may_fail else (0,))
    return read(workdir / "metrics.jsonl")


def run(command: Sequence[str], codes: Sequence[int] = (0,)) -> None:
    """Runs a command; if its exit code is none of `codes`, exits with it. The command has reported why."""
    if (code := subprocess.run(command).returncode) not in codes:
        sys.exit(code)


def every(steps: int, evaluations: int = 5) -> dict[str, int]:
    """Settings of a run of so many updates, with so many evaluations and panels at the end."""
    interval = max(1, steps // evaluations)
    return {
        "steps": steps,
        "log_every": max(1, steps // 50),
        "eval.every": interval,
        "checkpoint.every": interval,
        "panels.every": steps,
    }


def evaluate(
    models: Mapping[str, pathlib.Path], data: pathlib.Path, out: pathlib.Path, asked: object
) -> dict[str, dict[str, Any]]:
    """Scores models and the linear codec on a folder by vaejax.evaluate, unless that was done.

    Args:
      models: folders of the runs, by name.
      data: folder of photos and clips.
      out: folder of the results.
      asked: what the results depend on, besides the names; results for other values are replaced.

    Returns:
      {name or 'linear codec': {bucket: {score: value}}}.
    """
    kept, asked = out / "asked.json", {"models": list(map(str, models.values())), "of": asked}
    if not kept.exists() or files.read_json(kept) != asked:
        names = [str(folder) for folder in models.values()]
        command = [sys.executable, "-m", "vaejax.evaluate", f"--checkpoint={names[0]}", "--compare"]
        run([*command, *names[1:], "linear", f"--data={data}", f"--out={out}"])
        files.write_json(kept, asked)
    found = files.read_json(out / "results.json")["results"]
    return {
        name: {
            bucket: {score: entry["value"] for score, entry in codecs[str(codec)]["scores"].items()}
            for bucket, codecs in found.items()
        }
        for name, codec in {**models, "linear codec": "linear"}.items()
    }


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
