"""Console output of a run: its setup at the start, then one line at every log interval.

Lines are printed to stderr, not logged through absl. absl hides lines until a program has parsed its flags,
which a notebook never does, and its prefix takes half the width of a terminal.
"""

import collections
import dataclasses
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from clu import parameter_overview
from flax.core import meta

from vaejax import files
from vaejax.config import Config
from vaejax.data.bucket import Bucket
from vaejax.data.table import count_of
from vaejax.losses.objective import TERMS
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.step_line import Part, fitted
from vaejax.runtime import distributed
from vaejax.runtime.stopwatch import Stopwatch


class Cost(NamedTuple):
    """The size of an update, over all processes.

    Attributes:
      samples: number of images and clips.
      pixels: sum of B·T·H·W over the batches of the update.
      flops: floating-point operations of the networks, without rematerialization; 0 if not counted.
    """

    samples: int
    pixels: int
    flops: int


class Later(NamedTuple):
    """The time that a run still spends on tasks other than updates.

    Attributes:
      seconds: expected seconds of evaluations, checkpoints and latent statistics.
      unknown: names of tasks whose time is not known yet, such as 'evaluation'.
    """

    seconds: float = 0.0
    unknown: tuple[str, ...] = ()


def introduce(
    folder: RunFolder,
    config: Config,
    buckets: Sequence[Bucket],
    files_of: Mapping[str, int],
    start: int,
    params: Mapping[str, Any],
) -> None:
    """Prints the setup, schedule and size of a run, and writes DIR/parameters.txt.

    Args:
      folder: folder of the run.
      config: configuration of the run.
      buckets: buckets of the run.
      files_of: number of training files by kind, see `sources.training_files`.
      start: step at which the run starts or resumes.
      params: parameters of the autoencoder, or their shapes.
    """
    table, total = parameter_table(params)
    if jax.process_index() == 0:
        files.write_text(folder.parameters, f"{table}\n{total}\n")
    for line in (setup_line(config, buckets, files_of, start), *schedule_lines(config), total):
        distributed.say(line)


def setup_line(config: Config, buckets: Sequence[Bucket], files_of: Mapping[str, int], start: int) -> str:
    """One line with the devices, data type, batch, training files, first and last step of a run."""
    batches = " + ".join(
        f"{b.name} {b.batch}{f' (every {b.every} updates)' if b.every > 1 else ''}" for b in buckets
    )
    trained = " + ".join(count_of(n, noun) for noun, n in files_of.items() if n)
    if start:
        begin = f"resuming at step {start}"
    else:
        begin = f"starting from {config.init}" if config.init else "starting"
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return (
        f"{devices}, {config.model.dtype}, global batch {batches}, training on {trained}, {begin},"
        f" ends at step {config.steps}"
    )


def schedule_lines(config: Config) -> list[str]:
    """One line with the update at which each loss term starts, then a warning for each that never starts."""
    weights, game = dataclasses.asdict(config.loss.weights), config.loss.adversarial
    terms = [name for name in TERMS if weights.get(name)]
    # (key of the setting, what starts, number of the first update, counted from 0).
    late = []
    if "perceptual" in terms:
        late.append(("loss.perceptual.start", "perceptual", config.loss.perceptual.start))
    if "adversarial" in terms:
        late.append(("loss.adversarial.start", "adversarial", game.start))
        if game.warmup:
            late.append(("loss.adversarial.start", "discriminators", game.start - game.warmup))
    phases: dict[int, list[str]] = {0: [term for term in terms if term not in {name for _, name, _ in late}]}
    for _, name, first in sorted(late, key=lambda item: item[2]):
        if first < config.steps:
            phases.setdefault(first, []).append(name)
    steps = [*sorted(phases), config.steps]
    parts = [f"updates 0-{steps[1] - 1}: {', '.join(phases[0])}"]
    parts += [f"from {step}: {', '.join(phases[step])}" for step in steps[1:-1]]
    return ["; ".join(parts)] + [
        f"warning: {key} = {first} is not below steps = {config.steps}: the {name} term never starts"
        for key, name, first in late
        if first >= config.steps and name != "discriminators"
    ]


def parameter_table(params: Mapping[str, Any]) -> tuple[str, str]:
    """A table of all parameters, and a line with the totals of encoder, decoder and the rest.

    Args:
      params: nested dictionary of arrays or shapes. Flax's partitioning boxes are removed, and so is a top
        level whose only key is 'params'.
    """
    params = meta.unbox(params)
    if set(params) == {"params"}:
        params = params["params"]
    totals = collections.Counter()
    for name, module in params.items():
        part = next((part for part in ("encoder", "decoder") if name.startswith(part)), "other")
        totals[part] += sum(leaf.size for leaf in jax.tree.leaves(module))
    parts = ", ".join(f"{part} {totals[part]:,}" for part in ("encoder", "decoder", "other"))
    table = parameter_overview.get_parameter_overview(params, include_stats=False)
    return table.rpartition("\n")[0], f"parameters: {totals.total():,} ({parts})"


class Progress:
    """Times the updates of a run and prints its progress.

    Call `tick` after every update and `log` whenever a line is due. Of the stopwatch, the causes 'updates'
    and 'data' count. The first update is not timed, because devices and pipeline warm up. The remaining time
    is estimated from the median speed of the recent intervals between log lines, so that a few slow intervals
    do not distort it.

    Args:
      total_steps: step at which the run ends.
      stopwatch: measures the time by its cause.
      start_step: step at which the run starts or resumes.
      is_main: whether to print; True only on process 0.
      peak_flops: peak operations per second of all devices together; 0 if unknown.
    """

    def __init__(
        self,
        total_steps: int,
        stopwatch: Stopwatch,
        start_step: int = 0,
        is_main: bool = True,
        peak_flops: float = 0.0,
    ):
        self._total, self._start, self._is_main = total_steps, start_step, is_main
        self._stopwatch = stopwatch
        self._first, self._peak_flops = True, peak_flops
        self._recent = collections.deque(maxlen=21)  # seconds per update in the latest intervals
        self._begin_interval()

    def tick(self, samples: int, pixels: int, flops: float = 0.0) -> None:
        """Counts one update.

        Args:
          samples: number of images and clips in the update, over all processes.
          pixels: sum of B·T·H·W, over all processes and buckets.
          flops: floating-point operations of the networks, without rematerialization, over all processes.
        """
        if self._first:
            self._first = False
            self._begin_interval()
            return
        self._steps += 1
        self._samples += samples
        self._pixels += pixels
        self._flops += flops

    def log(self, step: int, parts: Sequence[Part] = (), later: Later | None = None) -> dict[str, float]:
        """Prints one line of at most `step_line.WIDTH` characters and begins the next interval.

        Args:
          step: number of updates done.
          parts: parts of the line about the update's metrics, from `step_line.Readable`.
          later: time of the run's tasks other than updates.

        Returns:
          Speeds since the last call, {'train/all/NAME': number}. NAME is step_seconds, samples_per_second,
          megapixels_per_second, data_wait (fraction of the time spent waiting for data) or, if `peak_flops`
          is known, flop_utilisation (fraction of `peak_flops` that the networks used). {} if no update was
          timed since the last call, as after the first update of a run.
        """
        later = later or Later()
        line = [(0, f"step {step:>{len(str(self._total))}}/{self._total}")]
        line.append((5, f"{100 * step / self._total:.1f}%"))
        speeds = {}
        if self._steps:
            seconds = max(self._stopwatch.seconds("updates", "data") - self._begin, 1e-9)
            waited = self._stopwatch.seconds("data") - self._begin_data
            self._recent.append(seconds / self._steps)
            speeds = {
                "train/all/step_seconds": seconds / self._steps,
                "train/all/samples_per_second": self._samples / seconds,
                "train/all/megapixels_per_second": self._pixels / 1e6 / seconds,
                "train/all/data_wait": waited / seconds,
            }
            # The lower median: of a fast and a slow interval it takes the fast one.
            left = statistics.median_low(self._recent) * (self._total - step) + later.seconds
            step_seconds, samples, megapixels, wait = speeds.values()
            line += [(0, " + ".join([f"eta {duration(left)}", *later.unknown])), *parts]
            line += [(6, f"{step_seconds:.3g} s/step"), (4, f"{_compact(samples)} samples/s")]
            line += [(7, f"{_compact(megapixels)} Mpx/s"), (1, f"data wait {100 * wait:.0f}%")]
            if self._peak_flops:
                utilization = self._flops / seconds / self._peak_flops
                speeds["train/all/flop_utilisation"] = utilization
                line.append((2, f"MFU {100 * utilization:.1f}%"))
            self._begin_interval()
        else:
            line += parts
        if self._is_main:
            print(fitted(line), file=sys.stderr, flush=True)
        return speeds

    def _begin_interval(self) -> None:
        self._steps = self._samples = self._pixels = 0
        self._flops = 0.0
        self._begin = self._stopwatch.seconds("updates", "data")
        self._begin_data = self._stopwatch.seconds("data")


def _compact(number: float) -> str:
    """A number with three significant digits, or an integer if it is at least 100: 0.0123, 12.3, 1,230."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """A duration as 3d02h, 2h14m, 5m07s or 42s."""
    seconds = max(round(seconds), 0)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // small:02d}{small_unit}"
    return f"{seconds}s"
