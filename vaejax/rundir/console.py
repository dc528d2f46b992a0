"""What the console shows: one plain line per log, and the parameters at the start.

Lines go to stderr by print and not through absl's logging: absl hides them until a program has parsed its
flags (a notebook never does), and its prefix takes half the width of a terminal. A plain line is as good in
a log file as on a terminal.
"""

import collections
import contextlib
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from clu import parameter_overview as clu_overview
from flax.core import meta

from vaejax.losses.objective import TERMS

_SHOWN = (
    "loss",
    "nll",
    "kl",
    *(term for term in TERMS if term not in ("reconstruction", "kl", "adversarial")),
    "adversarial_image",
    "adversarial_video",
    "discriminator_image",
    "discriminator_video",
    "adaptive_weight",
    "accuracy_image",
    "accuracy_video",
    "grad_norm",
    "bad_steps",
)


class Cost(NamedTuple):
    """The size of an update, over all processes.

    Attributes:
      samples: images and clips.
      pixels: sum of B·T·H·W.
      flops: operations of the model, without rematerialization; 0 if they are not counted.
    """

    samples: int
    pixels: int
    flops: int


def say(line: str) -> None:
    """Prints a line to stderr, on process 0."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Times the steps of a run and prints where it stands.

    Call `tick` at the end of every step and `log` whenever a line is due. The first step is not timed (it
    compiles), nor is what happens inside `paused()` (evaluation, checkpoints), and the estimate of the time
    left is from the median of recent intervals between logs: later compilations and hiccups do not spoil it.
    It counts training steps only.

    Args:
      total_steps: the step at which the run ends.
      start_step: the step it starts or resumes from.
      shown: the names of the metrics to print, in this order; others are passed over.
      is_main: other processes print nothing.
      peak_flops: operations a second of all devices together, at most; 0 where it is not known.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        shown: Sequence[str] = _SHOWN,
        is_main: bool = True,
        peak_flops: float = 0.0,
    ):
        self._total, self._start, self._shown, self._is_main = total_steps, start_step, tuple(shown), is_main
        self._first, self._peak_flops = True, peak_flops
        self._recent = collections.deque(maxlen=21)  # seconds a step, of the latest intervals
        self._begin_interval()

    def tick(self, samples: int, pixels: int, waited: float = 0.0, flops: float = 0.0) -> None:
        """Counts one step.

        Args:
          samples: images and clips in the step, over all processes.
          pixels: B·T·H·W of the step, over all processes and buckets.
          waited: seconds of the step spent waiting for data.
          flops: operations of the step's model (without rematerialisation), over all processes.
        """
        if self._first:
            self._first = False
            self._begin_interval()
            return
        self._steps += 1
        self._samples += samples
        self._pixels += pixels
        self._waited += waited
        self._flops += flops

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside this context time does not count as training."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self._begin += time.monotonic() - begin

    def log(self, step: int, scalars: Mapping[str, Any]) -> dict[str, float]:
        """Prints one line and starts the next interval.

        Args:
          step: the number of steps done.
          scalars: numbers keyed `split/bucket/name`.

        Returns:
          The speeds since the last call, as scalars to write beside the others: step_seconds,
          samples_per_second, megapixels_per_second, data_wait (a share, 0 to 1) and, where the peak is
          known, flop_utilisation (a share of the bfloat16 peak), under train/all/. Empty when no step was
          timed since.
        """
        line = f"step {step:>{len(str(self._total))}}/{self._total} {100 * step / self._total:5.1f}%"
        speeds = {}
        if self._steps:
            seconds = max(time.monotonic() - self._begin, 1e-9)
            self._recent.append(seconds / self._steps)
            speeds = {
                "train/all/step_seconds": seconds / self._steps,
                "train/all/samples_per_second": self._samples / seconds,
                "train/all/megapixels_per_second": self._pixels / 1e6 / seconds,
                "train/all/data_wait": min(self._waited / seconds, 1.0),
            }
            # The lower median: of two intervals, one of them slow, believe the fast one.
            left = statistics.median_low(self._recent) * (self._total - step)
            step_seconds, samples, megapixels, wait = speeds.values()
            line += f"  eta {duration(left)}  {step_seconds:.3g} s/step  {_compact(samples)} samples/s"
            line += f"  {_compact(megapixels)} Mpx/s  data wait {100 * wait:.0f}%"
            if self._peak_flops:
                utilisation = speeds["train/all/flop_utilisation"] = self._flops / seconds / self._peak_flops
                line += f"  MFU {100 * utilisation:.1f}%"
            self._begin_interval()
        for bucket, numbers in self._by_bucket(scalars).items():
            line += f" | {bucket} ".replace("all ", "") + " ".join(f"{n} {float(v):.4g}" for n, v in numbers)
        if self._is_main:
            print(line, file=sys.stderr, flush=True)
        return speeds

    def _begin_interval(self) -> None:
        self._begin, self._steps, self._samples, self._pixels = time.monotonic(), 0, 0, 0
        self._waited = self._flops = 0.0

    def _by_bucket(self, scalars: Mapping[str, Any]) -> dict[str, list[tuple[str, Any]]]:
        """The shown metrics of every bucket, those of 'all' last."""
        buckets = collections.defaultdict(dict)
        for key, value in scalars.items():
            _, bucket, name = key.split("/", 2)
            if name in self._shown:
                buckets[bucket][name] = value
        order = sorted(buckets, key=lambda bucket: bucket == "all")
        return {b: sorted(buckets[b].items(), key=lambda item: self._shown.index(item[0])) for b in order}


def _compact(number: float) -> str:
    """Three digits, and never an exponent: 0.0123, 1.23, 12.3, 1,230."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """3d02h, 2h14m, 5m07s or 42s."""
    seconds = max(round(seconds), 0)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // small:02d}{small_unit}"
    return f"{seconds}s"


def parameter_overview(params: Mapping[str, Any]) -> str:
    """A table of all parameters, then one line with the totals of encoder, decoder and the rest.

    Args:
      params: the parameters, a nested dictionary of arrays or of shapes, partitioned or not; what is above
        the modules ('params') may be there.
    """
    params = meta.unbox(params)
    if set(params) == {"params"}:
        params = params["params"]
    totals = collections.Counter()
    for name, module in params.items():
        part = next((part for part in ("encoder", "decoder") if name.startswith(part)), "other")
        totals[part] += sum(leaf.size for leaf in jax.tree.leaves(module))
    parts = ", ".join(f"{part} {totals[part]:,}" for part in ("encoder", "decoder", "other"))
    table = clu_overview.get_parameter_overview(params, include_stats=False)
    return f"{table.rpartition(chr(10))[0]}\nparameters: {totals.total():,} ({parts})"
