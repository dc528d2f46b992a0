"""The verdict on a run: sentences about how its scores of held-out samples develop.

An alarm is in force at an evaluation if its condition holds then. Each alarm says what to try.
"""

import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from vaejax import files

# Conditions of the alarms. PSNR is in dB.
BELOW_LINEAR = 0.5  # PSNR below the linear codec, from update `counts_from` on
BELOW_BEST = 1.0  # PSNR below the best evaluation so far
OVERFITTED = 3.0  # PSNR that training samples gained since the first evaluation, minus that of held-out ones
DEAD = 0.25  # share of dead latent channels
NO_KL = 1e-3  # KL in nats per pixel value; a healthy run has more than a hundred times as much
SPREAD = 30.0  # largest activation norm over the median one; healthy levels have 1 to 10
WAITING = 0.5  # share of the time since the last evaluation that updates waited for samples

WHOLE_RUN = "mean"  # the bucket of alarms that concern no single bucket, as in metrics.jsonl


def counts_from(steps: int) -> int:
    """The update from which a PSNR below the linear codec's is an alarm, in a run of `steps` updates.

    It is half of the run, but at most 10,000. Before that, the run may still learn what the codec does.
    """
    return min(-(-steps // 2), 10_000)


class Verdict(NamedTuple):
    """The judgement of one evaluation.

    Attributes:
      changes: by bucket, the change of PSNR since the last and the best evaluation; '' for the first one.
      alarms: by bucket, the alarms in force; WHOLE_RUN has those of no single bucket.
    """

    changes: dict[str, str]
    alarms: dict[str, list[str]]

    def lines(self) -> list[str]:
        """The alarms as lines for the console, or one line that says that there are none."""
        lines = [
            f"  alarm: {text if bucket == WHOLE_RUN else f'{bucket} {text}'}"
            for bucket, texts in self.alarms.items()
            for text in texts
        ]
        return lines or ["  no alarm"]


class History:
    """The evaluations of a run and its waiting times, from which verdicts follow.

    Args:
      steps: length of the run in updates.
      channels: number of latent channels.
      trains_encoder: whether the encoder trains.
    """

    def __init__(self, steps: int, channels: int, trains_encoder: bool = True):
        self._steps, self._channels, self._trains_encoder = steps, channels, trains_encoder
        self._scores: dict[str, dict[int, dict[str, float]]] = {}  # by bucket and step
        self._waits: list[float] = []  # shares of the time, one per interval between log lines

    def read(self, path: str | os.PathLike) -> None:
        """Adds the evaluations and waiting times in a metrics.jsonl, perhaps of another version of vaejax."""
        for line in files.read_json_lines(path):
            step, bucket = line.pop("step"), line.pop("bucket", "")
            if line.pop("split", "") == "train":
                self.waited(float(line.get("data_wait", math.nan)))
            elif "psnr" in line and bucket != "mean":
                self._scores.setdefault(bucket, {})[step] = dict(_numbers(line))
                self._waits.clear()

    def waited(self, share: float) -> None:
        """Adds the share of the time that the updates of an interval waited for samples; NaN if unknown."""
        if math.isfinite(share):
            self._waits.append(share)

    def judge(self, step: int, scores: Mapping[str, float]) -> Verdict:
        """Adds an evaluation after `step` updates and judges it.

        Args:
          step: number of updates done.
          scores: scores by 'BUCKET/NAME', see `TrainingEvaluation.evaluate`.
        """
        by_bucket: dict[str, dict[str, float]] = {}
        for key, value in scores.items():
            bucket, name = key.split("/", 1)
            by_bucket.setdefault(bucket, {})[name] = value
        by_bucket = {name: one for name, one in by_bucket.items() if name != "mean" and "psnr" in one}
        verdict = Verdict({}, {WHOLE_RUN: list(self._starved())})
        for bucket, now in by_bucket.items():
            earlier = self._scores.setdefault(bucket, {})
            verdict.changes[bucket] = _changes(earlier, now)
            verdict.alarms[bucket] = list(self._alarms(step, earlier, now))
            earlier[step] = now
        self._waits.clear()
        return verdict

    def _alarms(
        self, step: int, earlier: Mapping[int, dict[str, float]], now: dict[str, float]
    ) -> Iterator[str]:
        psnr, linear = now["psnr"], now.get("psnr_linear")
        if linear is not None and step >= counts_from(self._steps) and not psnr >= linear - BELOW_LINEAR:
            yield (
                f"is {linear - psnr:.2f} dB below the linear codec: a matrix would do better. Train longer,"
                " or lower the weights of all terms except reconstruction"
            )
        best = _best(earlier)
        if best is not None and not psnr >= earlier[best]["psnr"] - BELOW_BEST:
            yield (
                f"gets worse: {earlier[best]['psnr'] - psnr:.2f} dB below its best, at step {best}. Lower"
                " optim.learning_rate, or the weights of the terms that started since"
            )
        yield from _overfitted(earlier, now)
        yield from self._collapsed(now)
        yield from _exploded(now)

    def _collapsed(self, now: dict[str, float]) -> Iterator[str]:
        dead = now.get("dead_channels", 0)
        if now.get("kl", math.inf) < NO_KL:
            cause = f"its latents carry nothing (KL {now['kl']:.1e} nats per pixel value)"
            remedy = "Lower loss.weights.kl"
        elif dead > DEAD * self._channels:
            cause = f"{dead:.0f} of {self._channels} latent channels carry nothing"
            remedy = "Lower loss.weights.kl, or use fewer model.latent_channels"
        else:
            return
        if self._trains_encoder:
            yield f"collapses: {cause}. {remedy}"
        else:
            yield f"cannot reconstruct: {cause}. The encoder is frozen: train it too, or choose another model"

    def _starved(self) -> Iterator[str]:
        share = statistics.median(self._waits) if self._waits else 0.0
        if share > WAITING:
            yield (
                f"the updates waited for samples {100 * share:.0f}% of the time. Raise data.workers, or pack"
                " the media into shards with vaejax prepare"
            )


def _overfitted(earlier: Mapping[int, dict[str, float]], now: dict[str, float]) -> Iterator[str]:
    """The alarm of overfitting. Training samples may be easier from the start, so only the change counts."""
    first = next((step for step in sorted(earlier) if "psnr_train" in earlier[step]), None)
    if first is None or "psnr_train" not in now:
        return
    gained = {name: now[name] - earlier[first][name] for name in ("psnr", "psnr_train")}
    if gained["psnr_train"] - gained["psnr"] > OVERFITTED:
        yield (
            f"overfits: since step {first}, training samples gained {gained['psnr_train']:+.2f} dB, held-out"
            f" ones {gained['psnr']:+.2f} dB. Add files, raise data.zoom, or train for fewer steps"
        )


def _exploded(now: dict[str, float]) -> Iterator[str]:
    spreads = {
        name: value for name, value in now.items() if name.startswith("spread_") and not math.isnan(value)
    }
    worst = max(spreads, key=lambda name: spreads[name], default="")
    if worst and spreads[worst] > SPREAD:
        level = re.sub(r"spread_(\w+)_level_(\d+)", r"\1 level \2", worst)
        yield (
            f"explodes: the largest activation of {level} is {spreads[worst]:.0f} times the median. Use"
            " model.conv=smc, or set loss.weights.outliers"
        )


def _changes(earlier: Mapping[int, dict[str, float]], now: dict[str, float]) -> str:
    """The change since the last and the best of the earlier evaluations, in words."""
    best = _best(earlier)
    if best is None:
        return ""
    last = max(earlier)
    text = f"{now['psnr'] - earlier[last]['psnr']:+.2f} since step {last}"
    gain = now["psnr"] - earlier[best]["psnr"]
    return f"{text}, {'best so far' if gain >= 0 else f'{gain:+.2f} vs best (step {best})'}"


def _best(earlier: Mapping[int, dict[str, float]]) -> int | None:
    """The step of the highest PSNR; None if there is no PSNR."""
    known = {step: one["psnr"] for step, one in earlier.items() if not math.isnan(one["psnr"])}
    return max(known, key=lambda step: known[step], default=None)


def _numbers(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a line of metrics.jsonl; non-finite ones are strings there."""
    for name, value in line.items():
        if isinstance(value, (int, float)) or value in ("NaN", "Infinity", "-Infinity"):
            yield name, float(value)
