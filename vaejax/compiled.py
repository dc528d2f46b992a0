"""The programs of a run: the gradients of each bucket and the step, compiled when a phase first needs it."""

import contextlib
import functools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vaejax import mesh as sharding
from vaejax import train_step
from vaejax.adversarial import Adversary
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.fault import Fault
from vaejax.models.autoencoder import Autoencoder
from vaejax.objective import Objective, Terms
from vaejax.train_state import TrainState


class Update:
    """One update of a run: state and batches to state and terms.

    Terms that do not count yet cost nothing: before `perceptual_start` and before the discriminators take
    part, other programs run, without them.

    Args:
      buckets: of the run.
      shardings: of the state.
      mesh: of the run.
      model, objective, adversary, optimizer, clipping, ema_decay: see train_step.py.
      lpips_params: of the perceptual network, or {}.
      perceptual_start: the first step that has the perceptual term.
      seed: of the noise.
      is_main: tells what is compiled.
      faults: of tests.
    """

    def __init__(
        self,
        buckets: Sequence[Bucket],
        shardings: TrainState,
        mesh: Mesh,
        model: Autoencoder,
        objective: Objective,
        adversary: Adversary | None,
        optimizer: optax.GradientTransformation,
        clipping: optax.GradientTransformation,
        ema_decay: float,
        lpips_params: dict,
        perceptual_start: int,
        seed: int,
        is_main: bool,
        faults: Sequence[Fault] = (),
    ):
        self._buckets = {b.name: b for b in buckets}
        self._shardings, self._mesh, self._is_main, self._faults = shardings, mesh, is_main, faults
        self._model, self._objective, self._adversary = model, objective, adversary
        self._perceptual_start = perceptual_start
        self._optimization = {"optimizer": optimizer, "clipping": clipping, "ema_decay": ema_decay}
        replicated = sharding.replicated(mesh)
        self._key = jax.device_put(jax.random.key(seed), replicated)
        self._lpips = jax.device_put(lpips_params, replicated)
        self._programs: dict = {}

    def prepare(self, state: TrainState, step: int) -> None:
        """Compiles what `step` needs and is not there yet."""
        phase = self._phase(step)
        if phase in self._programs:
            return
        perceptual, plays = phase
        objective = self._objective if perceptual else self._objective.without("perceptual")
        adversary = self._adversary if plays else None
        gathered = jax.eval_shape(functools.partial(train_step.nothing_gathered, adversary=adversary), state)
        observed = jax.tree.map(
            lambda _: sharding.replicated(self._mesh), (gathered.observed, gathered.finite)
        )
        opponents = {n: one.params for n, one in self._shardings.opponents.items()} if plays else {}
        places = train_step.Gathered(self._shardings.params, opponents, *observed)
        gathered = jax.tree.map(_with_sharding, gathered, places)
        nothing = jax.jit(
            functools.partial(train_step.nothing_gathered, adversary=adversary), out_shardings=places
        )
        apply = jax.jit(
            functools.partial(train_step.apply_gradients, adversary=adversary, **self._optimization),
            donate_argnums=0,
            out_shardings=(self._shardings, None),
        )
        with self._told("the update"):
            nothing, apply = nothing.lower(state).compile(), apply.lower(state, gathered).compile()
        gradients = {
            name: self._compile(bucket, state, gathered, places, objective, adversary)
            for name, bucket in self._buckets.items()
        }
        self._programs[phase] = nothing, gradients, apply

    def __call__(
        self, state: TrainState, batches: Mapping[str, Batch], step: int
    ) -> tuple[TrainState, dict[str, Terms]]:
        """The state after one update, and the terms of every bucket and of 'all'; `state` is given away."""
        nothing, gradients, apply = self._programs[self._phase(step)]
        gathered, terms = nothing(state), {}
        for name, batch in batches.items():
            frames = sharding.global_frames(self._mesh, batch.frames, batch.rows, self._buckets[name].batch)
            gathered, terms[name] = gradients[name](state, gathered, frames, self._key, self._lpips)
        state, terms["all"] = apply(state, gathered)
        return state, terms

    def _phase(self, step: int) -> tuple[bool, bool]:
        return step >= self._perceptual_start, self._adversary is not None and self._adversary.plays(step)

    def _compile(self, b: Bucket, state, gathered, places, objective, adversary):
        """The gradient program of one bucket."""
        faults = tuple(fault for fault in self._faults if fault.bucket == b.name)
        step = jax.jit(
            functools.partial(
                train_step.bucket_gradients,
                weight=b.weight,
                model=self._model,
                objective=objective,
                adversary=adversary,
                faults=faults,
            ),
            donate_argnums=1,
            out_shardings=(places, None),
        )
        shape = (b.batch, b.frames, b.height, b.width, 3)
        frames = jax.ShapeDtypeStruct(
            shape, jnp.uint8, sharding=sharding.frames_sharding(self._mesh, b.batch)
        )
        with self._told(f"{b.name}, batch {b.batch}"):
            return step.lower(state, gathered, frames, self._key, self._lpips).compile()

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Says on the console what is compiled inside, and how long it took."""
        if self._is_main:
            print(f"compiling {what} ...", end=" ", file=sys.stderr, flush=True)
        begin = time.monotonic()
        yield
        if self._is_main:
            print(f"{time.monotonic() - begin:.1f} s", file=sys.stderr)


def _with_sharding(shape: jax.ShapeDtypeStruct, place) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)
