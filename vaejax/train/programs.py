"""The programs of a run: the gradients of each bucket and the step, compiled when a phase first needs it."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Traced
from ml_collections import ConfigDict

from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.losses.adversarial import Adversary
from vaejax.losses.objective import Objective, Terms
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.networks import lpips
from vaejax.runtime import distributed as multihost
from vaejax.runtime import flops
from vaejax.runtime import mesh as sharding
from vaejax.train import optimizer as optim
from vaejax.train import state as train_state
from vaejax.train import step as train_step
from vaejax.train.fault import Fault
from vaejax.train.state import TrainState

Phase = tuple[bool, bool]  # whether the perceptual term counts, whether the discriminators take part


@dataclasses.dataclass(frozen=True)
class Programs:
    """What an update runs, not yet compiled, for a mesh that need not be there.

    Terms that do not count yet cost nothing: before `perceptual_start` and before the discriminators take
    part, other programs run, without them.

    Attributes:
      state: the shape and the sharding of every array of the state.
      mesh: of the run.
      model, objective, adversary, optimizer, clipping, ema_decay: see train_step.py.
      lpips_params: of the perceptual network, arrays or shapes; {} where there is none.
      perceptual_start: the first step that has the perceptual term.
      faults: of tests.
    """

    state: TrainState
    mesh: Mesh
    model: Autoencoder
    objective: Objective
    adversary: Adversary | None
    optimizer: optax.GradientTransformation
    clipping: optax.GradientTransformation
    ema_decay: float
    lpips_params: dict
    perceptual_start: int = 0
    faults: Sequence[Fault] = ()

    @classmethod
    def of(
        cls, config: ConfigDict, buckets: Sequence[Bucket], mesh: Mesh, faults: Sequence[Fault] = ()
    ) -> "Programs":
        """The programs of a configuration.

        Raises:
          InputError: for a configuration whose parts do not fit together.
        """
        model = Autoencoder(Architecture.of(config.model))
        adversary = Adversary.of(config, buckets)
        optimizer = optim.optimizer(config.optim, config.steps)
        lpips_params = lpips.load_for(config.loss, buckets)
        return cls(
            train_state.shapes(model, optimizer, adversary, mesh),
            mesh,
            model,
            Objective.of(config),
            adversary,
            optimizer,
            optim.clipping(config.optim),
            config.ema.decay,
            lpips_params,
            config.loss.perceptual.start if lpips_params else 0,
            faults,
        )

    def phase(self, step: int) -> Phase:
        """What counts at a step."""
        return step >= self.perceptual_start, self.adversary is not None and self.adversary.is_training(step)

    def nothing(self, phase: Phase) -> Traced:
        """The state to what an update begins with."""
        nothing = functools.partial(train_step.nothing_gathered, adversary=self._adversary(phase))
        places = jax.tree.map(lambda x: x.sharding, self.gathered(phase))
        return jax.jit(nothing, out_shardings=places).trace(self.state)

    def gradients(self, phase: Phase, bucket: Bucket) -> Traced:
        """State, what was gathered, frames, key and perceptual network to what is gathered, and terms."""
        gathered = self.gathered(phase)
        step = functools.partial(
            train_step.bucket_gradients,
            weight=bucket.weight,
            model=self.model,
            objective=self.objective if phase[0] else self.objective.without("perceptual"),
            adversary=self._adversary(phase),
            faults=tuple(fault for fault in self.faults if fault.bucket == bucket.name),
        )
        shape = (bucket.batch, bucket.frames, bucket.height, bucket.width, 3)
        place, whole = sharding.frames_sharding(self.mesh, bucket.batch), sharding.replicated(self.mesh)
        frames = jax.ShapeDtypeStruct(shape, jnp.uint8, sharding=place)
        key, lpips_params = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            (jax.eval_shape(lambda: jax.random.key(0)), self.lpips_params),
        )
        places = jax.tree.map(lambda x: x.sharding, gathered)
        step = jax.jit(step, donate_argnums=1, out_shardings=(places, None))
        with sharding.placing_frames(self.mesh):
            return step.trace(self.state, gathered, frames, key, lpips_params)

    def apply(self, phase: Phase) -> Traced:
        """State and what was gathered to the next state and its norms."""
        apply = functools.partial(
            train_step.apply_gradients,
            adversary=self._adversary(phase),
            optimizer=self.optimizer,
            clipping=self.clipping,
            ema_decay=self.ema_decay,
        )
        places = jax.tree.map(lambda x: x.sharding, self.state)
        apply = jax.jit(apply, donate_argnums=0, out_shardings=(places, None))
        return apply.trace(self.state, self.gathered(phase))

    def model_flops(self, phase: Phase, bucket: Bucket) -> int:
        """Operations of the gradients of a batch, without what rematerialisation computes once more."""
        architecture = dataclasses.replace(self.model.architecture, remat=())
        once = dataclasses.replace(self, model=self.model.clone(architecture=architecture))
        return flops.count(once.gradients(phase, bucket).jaxpr)

    def _adversary(self, phase: Phase) -> Adversary | None:
        return self.adversary if phase[1] else None

    def gathered(self, phase: Phase) -> train_step.Gathered:
        """The shapes of what is gathered: gradients lie where their parameters do."""
        adversary = self._adversary(phase)
        nothing = functools.partial(train_step.nothing_gathered, adversary=adversary)
        gathered = jax.eval_shape(nothing, self.state)
        opponents = {name: one.params for name, one in self.state.opponents.items()} if adversary else {}
        like = (self.state.params, opponents)
        places = jax.tree.map(lambda x: x.sharding, like)
        whole = jax.tree.map(lambda _: sharding.replicated(self.mesh), (gathered.observed, gathered.finite))
        return sharding.placed(gathered, train_step.Gathered(*places, *whole))


class Update:
    """One update of a run: state and batches to state and terms.

    Args:
      programs: of the run.
      buckets: of the run.
      seed: of the noise.
      is_main: tells what is compiled.
      counts_flops: whether `model_flops` is wanted, for which a program is traced twice.

    Attributes:
      model_flops: of the gradients of a batch of each bucket, by name, in the phase prepared last.
      compile_seconds: of each bucket's program, by name, until someone clears it.
    """

    def __init__(
        self,
        programs: Programs,
        buckets: Sequence[Bucket],
        seed: int,
        is_main: bool,
        counts_flops: bool = False,
    ):
        self._programs, self._is_main, self._counts_flops = programs, is_main, counts_flops
        self._buckets = {b.name: b for b in buckets}
        self._key, self._lpips = sharding.everywhere(
            programs.mesh, (jax.random.key(seed), programs.lpips_params)
        )
        self._phase: Phase | None = None
        self._compiled: tuple = ()
        self._changes = 0  # of the phase
        self.model_flops: dict[str, int] = {}
        self.compile_seconds: dict[str, float] = {}

    def prepare(self, step: int, doing: Callable[[str], None] = lambda what: None) -> None:
        """Compiles what `step` needs and is not there yet; `doing` hears of each program before.

        Those of one phase are there at a time: a device keeps them in its memory, gigabytes of a large run.
        """
        phase = self._programs.phase(step)
        if phase == self._phase:
            return
        self._phase, self._compiled = None, ()
        with self._told("the update", doing):
            nothing, apply = (
                program(phase).lower().compile() for program in (self._programs.nothing, self._programs.apply)
            )
        gradients = {}
        for name, bucket in self._buckets.items():
            with self._told(f"{name}, batch {bucket.batch}", doing) as took:
                gradients[name] = self._programs.gradients(phase, bucket).lower().compile()
            self.compile_seconds[name] = took()
            if self._counts_flops:
                self.model_flops[name] = self._programs.model_flops(phase, bucket)
        self._changes += 1
        multihost.meet(f"compiled {self._changes}")
        self._phase, self._compiled = phase, (nothing, gradients, apply)

    def __call__(
        self, state: TrainState, batches: Mapping[str, Batch]
    ) -> tuple[TrainState, dict[str, Terms]]:
        """The state after an update of the step prepared last, and the terms of every bucket and of 'all'.

        `state` is given away.
        """
        nothing, gradients, apply = self._compiled
        gathered, terms = nothing(state), {}
        for name, batch in batches.items():
            frames = sharding.global_frames(
                self._programs.mesh, batch.frames, batch.rows, self._buckets[name].batch
            )
            gathered, terms[name] = gradients[name](state, gathered, frames, self._key, self._lpips)
        state, terms["all"] = apply(state, gathered)
        return state, terms

    @contextlib.contextmanager
    def _told(self, what: str, doing: Callable[[str], None]) -> Iterator[Callable[[], float]]:
        """Says on the console what is compiled inside, and how long it took; gives the seconds so far."""
        doing(f"compiling {what}")
        if self._is_main:
            print(f"compiling {what} ...", end=" ", file=sys.stderr, flush=True)
        begin = time.monotonic()
        yield lambda: time.monotonic() - begin
        if self._is_main:
            print(f"{time.monotonic() - begin:.1f} s", file=sys.stderr)
