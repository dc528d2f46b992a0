"""Runs the trainings of a lesson, each once, and remembers how long they took."""

import dataclasses
import json
import pathlib
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks import runs
from vaejax import files

# The demo without the terms that lessons do not need, and without what takes time but no part in scores.
COMMON = {
    "loss.weights.perceptual": 0.0,
    "loss.weights.adversarial": 0.0,
    "eval.linear_samples": 0,
    "eval.latent_samples": 0,
    "panels.every": 1_000_000,
    "optim.warmup": 20,
}
DONE = "lesson.json"  # in the folder of a training that is complete


class Trained(NamedTuple):
    """A complete training.

    Attributes:
      folder: the run.
      rows: its metrics by update, see `runs.read`.
    """

    folder: pathlib.Path
    rows: dict[int, dict[str, float]]

    def last(self, score: str) -> float:
        """The last value of a score, such as 'eval/image_64x64/psnr'; NaN if there is none."""
        return next(
            (row[score] for _, row in sorted(self.rows.items(), reverse=True) if score in row), float("nan")
        )

    def curve(self, score: str) -> list[tuple[int, float]]:
        """(update, value) of a score."""
        return [(step, row[score]) for step, row in self.rows.items() if score in row]


@dataclasses.dataclass
class Lab:
    """The place of a lesson's trainings.

    Attributes:
      out: folder of the lesson.
      preset: 'cpu' or 'gpu'.
      media: folder of photos and clips; '' takes those that packages ship.
      more: flags --config.KEY=VALUE for every training.
    """

    out: pathlib.Path
    preset: str
    media: str
    more: Sequence[str] = ()

    def pick(self, cpu: Any, gpu: Any) -> Any:
        """Returns one of two values, by the preset."""
        return gpu if self.preset == "gpu" else cpu

    def train(
        self, arm: str, seed: int, steps: int, settings: Mapping[str, Any], *, fails: bool = False
    ) -> Trained:
        """Trains the demo with settings, unless that is done.

        Args:
          arm: name of the arm, which names the folder together with the seed.
          seed: seed of the parameters, the samples and the noise.
          steps: number of updates.
          settings: values by key.
          fails: whether the training may end early because it diverged; its metrics then end early too.
        """
        folder = self.out / f"{re.sub('[^a-z0-9.]+', '_', arm.lower()).strip('_')}-{seed}"
        source = {"data.media": self.media, "data.sources": "{}"} if self.media else {}
        asked = COMMON | source | {"steps": steps, "checkpoint.every": steps, "seed": seed} | dict(settings)
        record = {"settings": {key: str(value) for key, value in asked.items()}, "more": list(self.more)}

        def work() -> None:
            print(f"{self.out.name}: training {folder.name} ...", file=sys.stderr)
            runs.train("demo", folder, asked, self.more, may_fail=fails)

        self._once(folder / DONE, record, work)
        return Trained(folder, runs.read(folder / "metrics.jsonl"))

    def compute(self, name: str, asked: Any, function: Callable[[], Any]) -> Any:
        """Returns the JSON-like result of a function, which is called once for each value of `asked`."""
        kept = self.out / f"{name}.result.json"
        self._once(self.out / f"{name}.json", {"asked": asked}, lambda: files.write_json(kept, function()))
        return files.read_json(kept)

    def seconds(self) -> float:
        """The time that all of the lesson's work took."""
        done = [*self.out.glob(f"*/{DONE}"), *self.out.glob("*.json")]
        return sum(
            found.get("seconds", 0.0) for found in map(files.read_json, done) if isinstance(found, dict)
        )

    def _once(self, done: pathlib.Path, record: dict[str, Any], work: Callable[[], None]) -> None:
        record = json.loads(json.dumps(record))  # as it is read again: tuples become lists
        if done.exists() and {**files.read_json(done), "seconds": 0} == {**record, "seconds": 0}:
            return
        begin = time.monotonic()
        work()
        done.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(done, record | {"seconds": time.monotonic() - begin})
