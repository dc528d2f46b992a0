"""The console line of an update, in numbers that a person can judge; metrics.jsonl has all others."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vaejax.config import Config
from vaejax.data.bucket import Bucket
from vaejax.losses.objective import Objective, Terms, implied_error

WIDTH = 120  # longest line in characters
Part = tuple[int, str]  # rank and text of a part of the line; parts of a high rank are left out first
KINDS = {"image": "images", "video": "clips"}


class Readable:
    """Derives readable numbers from the metrics of updates.

    Errors of a batch follow from its 'nll' and the log-scale before the update, without further computation.

    Args:
      config: configuration of the run.
      buckets: buckets of the run.
    """

    def __init__(self, config: Config, buckets: Sequence[Bucket]):
        objective = Objective.of(config)
        self._likelihood, self._buckets = config.loss.likelihood, {b.name: b for b in buckets}
        self._scales = {
            b.name: b.weight * objective.scale((b.frames, b.height, b.width, b.channels)) for b in buckets
        }
        self._log_scale: Any = None  # after the latest update, on the devices; None if unknown
        self._log_scales: dict[str, Any] = {}  # before the latest update of each bucket
        self._drawn: tuple[str, ...] = ()  # buckets of the latest update

    def update(self, terms: Mapping[str, Terms]) -> None:
        """Notes an update's buckets and log-scale, without waiting for the devices."""
        self._drawn = tuple(name for name in terms if name in self._scales)
        self._log_scales |= dict.fromkeys(self._drawn, self._log_scale)
        self._log_scale = terms.get("all", {}).get("log_scale")

    def parts(self, scalars: Mapping[str, Any]) -> list[Part]:
        """The error of the latest batches, learning rate, gradient norm per pixel value, and skipped updates.

        Args:
          scalars: metrics of the latest update, with keys 'train/BUCKET/NAME'.

        Returns:
          Parts of a step line, without those of unknown numbers.
        """
        found = [(1, error)] if (error := self._error(scalars)) else []
        if (rate := scalars.get("train/all/learning_rate")) is not None:
            found.append((2, f"lr {float(rate):.2g}"))
        scale = sum(self._scales[name] for name in self._drawn)
        if (norm := scalars.get("train/all/grad_norm")) is not None and scale:
            found.append((3, f"grad {float(norm) / scale:.3g}"))
        if skipped := scalars.get("train/all/bad_steps"):
            found.append((1, f"{skipped} skipped"))
        return found

    def _error(self, scalars: Mapping[str, Any]) -> str:
        """The error of the latest batches, separately for images and clips.

        For a Gaussian likelihood it is the PSNR in dB; for a Laplace likelihood, the mean absolute error in
        8-bit levels.
        """
        errors: dict[str, list[float]] = {}
        for name, bucket in self._buckets.items():
            nll, log_scale = scalars.get(f"train/{name}/nll"), self._log_scales.get(name)
            if nll is not None and log_scale is not None:
                error = implied_error(self._likelihood, float(nll), float(np.asarray(log_scale)))
                if error > 0 and math.isfinite(error):
                    errors.setdefault(bucket.kind, []).append(error)
        means = {KINDS[kind]: float(np.mean(some)) for kind, some in errors.items()}
        if not means:
            return ""
        if self._likelihood == "gaussian":
            return "psnr " + " ".join(
                f"{10 * math.log10(4 / mean):.1f} {kind}" for kind, mean in means.items()
            )
        return "error " + " ".join(f"{127.5 * mean:.1f} {kind}" for kind, mean in means.items()) + " of 255"


def fitted(parts: Sequence[Part]) -> str:
    """Joins parts in their order, leaving out those of the highest ranks until the line fits WIDTH."""
    kept = list(parts)
    while len(line := "  ".join(text for _, text in kept)) > WIDTH:
        kept.remove(max(kept, key=lambda part: part[0]))
    return line
