"""The compiled update of a run. Programs of loss terms that start later are compiled while the run trains."""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jax.stages import Compiled

from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.losses.objective import Terms
from vaejax.rundir.console import Cost
from vaejax.runtime import distributed
from vaejax.runtime import mesh as sharding
from vaejax.runtime.watchdog import Watchdog
from vaejax.train.programs import Phase, Programs
from vaejax.train.state import TrainState

# Programs are compiled ahead once the updates until they are needed take less than MARGIN times as long as
# the last compilation took, plus SLACK seconds: the training itself slows the compilation down.
MARGIN, SLACK = 3.0, 60.0


@dataclasses.dataclass(frozen=True)
class PhasePrograms:
    """The compiled programs of a phase.

    Attributes:
      phase: loss terms that have started.
      zeros, apply: see `Programs`.
      gradients: gradient program of each bucket, by its name.
      flops: FLOPs of these, {} unless they were counted.
      seconds: compilation time of these.
    """

    phase: Phase
    zeros: Compiled
    apply: Compiled
    gradients: dict[str, Compiled]
    flops: dict[str, int]
    seconds: dict[str, float]


class Update:
    """The compiled update of a run: maps a state and batches to the next state and metrics.

    Args:
      programs: uncompiled programs of the run.
      buckets: buckets of the run.
      seed: seed of the noise.
      counts_flops: whether `cost` counts FLOPs, for which each bucket's program is traced once more.
      steps: length of the run in updates; programs that it never reaches are not compiled ahead.

    Attributes:
      compile_seconds: compilation time of each bucket's program, by bucket name, and of all programs, as
        'all'; callers may clear it.
    """

    def __init__(
        self,
        programs: Programs,
        buckets: Sequence[Bucket],
        seed: int,
        counts_flops: bool = False,
        steps: int = 0,
    ):
        self._programs, self._counts_flops, self._steps = programs, counts_flops, steps
        self._buckets = {b.name: b for b in buckets}
        self._key, self._networks = sharding.replicate(
            programs.mesh, (jax.random.key(seed), dict(programs.networks))
        )
        self._now: PhasePrograms | None = None
        self._ahead: _Ahead | None = None
        self._phases = 0  # number of phases so far, for the names of barriers
        self._begun: tuple[int, float] = (0, 0.0)  # first update of this phase, and when it began
        self._took = 0.0  # seconds of the last compilation
        self.compile_seconds: dict[str, float] = {}

    def prepare(self, step: int, watchdog: Watchdog) -> None:
        """Makes the programs for the loss terms of `step` ready, unless they are.

        They are compiled now, or have been compiled in the background while earlier updates ran. The devices
        hold the programs of one `Phase`, and shortly before the next one begins those of two: the programs of
        a large run take gigabytes.
        """
        phase = self._programs.phase(step)
        if self._now is None or phase != self._now.phase:
            why = reason(self._now.phase if self._now else None, phase, step)
            ahead, self._ahead = self._ahead, None
            if ahead and ahead.phase == phase:
                watchdog.begin("compiling", step, patient=True)
                self._now = ahead.result()
                distributed.say(f"{why}: compiled while training")
            else:
                self._now = None
                self._now = self._compiled(phase, lambda what: _timed(what, why, step, watchdog))
            self.compile_seconds = dict(self._now.seconds)
            self._phases += 1
            distributed.barrier(f"compiled {self._phases}")
            self._begun = step, time.monotonic()
        else:
            self._look_ahead(step)

    def _look_ahead(self, step: int) -> None:
        """Begins to compile the programs of the next phase if it is time."""
        start = self._programs.next_start(step)
        if self._ahead or start is None or start >= self._steps:
            return
        first, began = self._begun
        remaining = (start - step) * (time.monotonic() - began) / max(1, step - first)
        if remaining < MARGIN * self._took + SLACK:
            phase = self._programs.phase(start)
            self._ahead = _Ahead(phase, lambda: self._compiled(phase, lambda what: contextlib.nullcontext()))

    def _compiled(
        self, phase: Phase, around: Callable[[str], contextlib.AbstractContextManager]
    ) -> PhasePrograms:
        """Compiles the programs of a phase; `around` takes what is compiled and gives a context for that."""
        begin, programs = time.monotonic(), self._programs
        with around("the update"):
            zeros, apply = (program(phase).lower().compile() for program in (programs.zeros, programs.apply))
        gradients, flops, seconds = {}, {}, {}
        for name, bucket in self._buckets.items():
            start = time.monotonic()
            with around(f"{name}, batch {bucket.batch}"):
                gradients[name] = programs.gradients(phase, bucket).lower().compile()
            seconds[name] = time.monotonic() - start
            if self._counts_flops:
                flops[name] = programs.model_flops(phase, bucket)
        seconds["all"] = self._took = time.monotonic() - begin
        return PhasePrograms(phase, zeros, apply, gradients, flops, seconds)

    def __call__(
        self, state: TrainState, batches: Mapping[str, Batch]
    ) -> tuple[TrainState, dict[str, Terms]]:
        """Runs one update with the programs that `prepare` made ready; the buffers of `state` are donated.

        Returns:
          The next state, and the metrics of every bucket and, as 'all', of the whole update.
        """
        if self._now is None:
            raise RuntimeError("prepare() comes first")
        mesh, now = self._programs.mesh, self._now
        accumulated, terms = now.zeros(state), {}
        for name, batch in batches.items():
            size = self._buckets[name].batch, self._buckets[name].at_once
            frames, latents = (
                None if x is None else sharding.global_frames(mesh, x, batch.rows, *size)
                for x in (batch.frames, batch.latents)
            )
            arguments = state, accumulated, frames, self._key, self._networks
            accumulated, terms[name] = now.gradients[name](*arguments, latents=latents)
        state, terms["all"] = now.apply(state, accumulated)
        return state, terms

    def cost(self, batches: Mapping[str, Batch]) -> Cost:
        """The samples, pixels and FLOPs of an update over all processes; 0 FLOPs unless `counts_flops`."""
        drawn = [self._buckets[name] for name in batches]
        flops = self._now.flops if self._now else {}
        return Cost(
            sum(b.batch for b in drawn),
            sum(b.batch * b.pixels for b in drawn),
            sum(flops.get(b.name, 0) for b in drawn),
        )


class _Ahead:
    """A compilation in the background.

    Args:
      phase: the phase whose programs are compiled.
      compiled: function that compiles them.
    """

    def __init__(self, phase: Phase, compiled: Callable[[], PhasePrograms]):
        self.phase = phase
        self._result: list[PhasePrograms] = []
        self._error: list[BaseException] = []

        def work():
            try:
                self._result.append(compiled())
            except BaseException as error:
                self._error.append(error)

        # A daemon, because a run that ends earlier does not wait for it.
        self._thread = threading.Thread(target=work, name="compile ahead", daemon=True)
        self._thread.start()

    def result(self) -> PhasePrograms:
        """Waits for the programs; raises what the compilation raised."""
        self._thread.join()
        if self._error:
            raise self._error[0]
        return self._result[0]


def reason(before: Phase | None, now: Phase, step: int) -> str:
    """The reason why update `step` needs other programs than the last update, whose phase was `before`."""
    if before is None:
        return "first update"
    names = {"perceptual": "perceptual", "adversarial": "discriminators"}
    started = [name for field, name in names.items() if getattr(now, field) and not getattr(before, field)]
    return f"from update {step}: {', '.join(started)}" if started else f"back at update {step}"


@contextlib.contextmanager
def _timed(what: str, why: str, step: int, watchdog: Watchdog) -> Iterator[None]:
    """Prints what the block compiles, why, and how long that took."""
    watchdog.begin(f"compiling {what}", step, patient=True)
    is_main, begin = jax.process_index() == 0, time.monotonic()
    if is_main:
        print(f"compiling {what} ({why}) ...", end=" ", file=sys.stderr, flush=True)
    yield
    if is_main:
        print(f"{time.monotonic() - begin:.1f} s", file=sys.stderr)
