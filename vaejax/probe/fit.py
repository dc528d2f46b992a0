"""Trains the diffusion transformer for a fixed number of updates; equal seeds give equal results."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding
from jax.stages import Traced

from vaejax.models.ema import ema
from vaejax.probe import flow
from vaejax.probe.dit import DiT
from vaejax.probe.latents import Latents
from vaejax.probe.presets import Preset

SCAN = 10  # updates per compiled call

Params = dict[str, Any]


class FitState(NamedTuple):
    """The step, the parameters, their average (EMA), and the state of the optimizer."""

    step: jax.Array
    params: Params
    average: Params
    optimizer: optax.OptState


def fit(
    model: DiT,
    latents: Latents,
    preset: Preset,
    seed: int,
    progress: Callable[[int, jax.Array], None] = lambda updates, loss: None,
) -> Params:
    """Minimizes the flow-matching loss on the training latents with Adam and returns the averaged parameters.

    Args:
      model: the transformer.
      latents: normalized latents; only those of training samples are used.
      preset: the budget of the fit.
      seed: seed of the initialization, the order of the samples, the noise and the times.
      progress: function called after every compiled call, with the call's number of updates and mean loss.
    """
    key = jax.random.key(seed)
    state = _init(jax.random.fold_in(key, 0), latents.train.shape[1:], model, preset)
    order = _shuffled(len(latents.train), seed)
    for start in range(0, preset.steps, SCAN):
        updates = min(SCAN, preset.steps - start)
        indices = np.stack([_take(order, preset.batch) for _ in range(updates)])
        state, loss = _updates(
            state,
            latents.train[indices],
            latents.labels[indices],
            jax.random.fold_in(key, 1),
            model=model,
            preset=preset,
        )
        progress(updates, loss)
    return state.average


def traced(model: DiT, preset: Preset, shape: tuple[int, ...], place: Sharding) -> Traced:
    """The program of SCAN updates, traced for latents of `shape` (t, h, w, c) that lie at `place`."""

    def like(shape, dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: _init(key, shape, model, preset), key)
    state, key = jax.tree.map(lambda x: like(x.shape, x.dtype), (state, key))
    batches = SCAN, preset.batch
    x, labels = like((*batches, *shape), jnp.float32), like(batches, jnp.int32)
    return _updates.trace(state, x, labels, key, model=model, preset=preset)


def velocity(model: DiT, params: Params, labels: jax.Array | np.ndarray) -> flow.Velocity:
    """The model as a function of noisy latents and times, for samples with these class labels."""
    return lambda x, times: cast(jax.Array, model.apply({"params": params}, x, times, labels))


def optimizer(preset: Preset) -> optax.GradientTransformation:
    """Adam with gradient clipping; the learning rate is constant after the warmup."""
    rate = optax.linear_schedule(0.0, preset.learning_rate, max(1, preset.warmup))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _init(key: jax.Array, shape: tuple[int, ...], model: DiT, preset: Preset) -> FitState:
    params = model.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]
    average = jax.tree.map(jnp.copy, params)  # copied, because no buffer can be donated twice
    return FitState(jnp.zeros((), jnp.int32), cast(Params, params), average, optimizer(preset).init(params))


@functools.partial(jax.jit, static_argnames=("model", "preset"), donate_argnums=0)
def _updates(
    state: FitState, x: jax.Array, labels: jax.Array, key: jax.Array, *, model: DiT, preset: Preset
) -> tuple[FitState, jax.Array]:
    """Makes one update per batch of x (k, b, t, h, w, c) and labels (k, b); also returns the mean loss."""

    def update(state: FitState, batch: tuple[jax.Array, jax.Array]) -> tuple[FitState, jax.Array]:
        x, labels = batch
        noise_key, times_key = jax.random.split(jax.random.fold_in(key, state.step))
        noise = jax.random.normal(noise_key, x.shape)
        times = flow.logit_normal(times_key, x.shape[:1])

        def loss(params):
            return flow.losses(velocity(model, params, labels), x, noise, times).mean()

        value, gradient = jax.value_and_grad(loss)(state.params)
        change, optimizer_state = optimizer(preset).update(gradient, state.optimizer, state.params)
        params = cast(Params, optax.apply_updates(state.params, change))
        average = ema(state.average, params, preset.ema, state.step)
        return FitState(state.step + 1, params, average, optimizer_state), value

    state, losses = jax.lax.scan(update, state, (x, labels))
    return state, losses.mean()


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless indices of samples, reshuffled in every epoch."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(count)


def _take(order: Iterator[int], count: int) -> list[int]:
    return [next(order) for _ in range(count)]
