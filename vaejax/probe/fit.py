"""Fits the diffusion transformer to latents: so many updates, and the same seed gives the same bits."""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vaejax.probe import flow
from vaejax.probe.dit import DiT
from vaejax.probe.latents import Latents
from vaejax.probe.presets import Preset

SCANNED = 10  # updates of one compiled call


class Numbers(NamedTuple):
    """What an update changes: the step, the parameters, their average, and the optimiser's state."""

    step: jax.Array
    params: dict
    average: dict
    optimizer: optax.OptState


def fit(
    model: DiT,
    latents: Latents,
    preset: Preset,
    seed: int,
    progress: Callable[[int, jax.Array], None] = lambda updates, loss: None,
) -> dict:
    """Minimises the flow-matching loss on the training latents by Adam; returns the averaged parameters.

    Args:
      model: the transformer.
      latents: whose training part is learned from.
      preset: the budget.
      seed: of the initialisation, the order of the samples, the noise and the times.
      progress: is told after every call how many updates it made, and their mean loss.
    """
    key = jax.random.key(seed)
    numbers = _init(jax.random.fold_in(key, 0), latents.train.shape[1:], model, preset)
    order = _shuffled(len(latents.train), seed)
    for start in range(0, preset.steps, SCANNED):
        scanned = min(SCANNED, preset.steps - start)
        drawn = np.stack([_take(order, preset.batch) for _ in range(scanned)])
        numbers, loss = _updates(
            numbers,
            latents.train[drawn],
            latents.labels[drawn],
            jax.random.fold_in(key, 1),
            model=model,
            preset=preset,
        )
        progress(scanned, loss)
    return numbers.average


def optimizer(preset: Preset) -> optax.GradientTransformation:
    """Adam of clipped gradients; the learning rate warms up and stays."""
    rate = optax.linear_schedule(0.0, preset.learning_rate, max(1, preset.warmup))
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _init(key: jax.Array, shape: tuple[int, ...], model: DiT, preset: Preset) -> Numbers:
    params = model.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]
    average = jax.tree.map(jnp.copy, params)  # donating one buffer twice is an error
    return Numbers(jnp.zeros((), jnp.int32), params, average, optimizer(preset).init(params))


@functools.partial(jax.jit, static_argnames=("model", "preset"), donate_argnums=0)
def _updates(
    numbers: Numbers, x: jax.Array, labels: jax.Array, key: jax.Array, *, model: DiT, preset: Preset
) -> tuple[Numbers, jax.Array]:
    """An update for each batch of x (k, b, t, h, w, c) and labels (k, b); and their mean loss."""

    def update(numbers: Numbers, batch):
        x, labels = batch
        noise_key, times_key = jax.random.split(jax.random.fold_in(key, numbers.step))
        noise = jax.random.normal(noise_key, x.shape)
        times = flow.logit_normal(times_key, x.shape[:1])

        def loss(params):
            return flow.losses(velocity(model, params, labels), x, noise, times).mean()

        value, gradient = jax.value_and_grad(loss)(numbers.params)
        change, state = optimizer(preset).update(gradient, numbers.optimizer, numbers.params)
        params = optax.apply_updates(numbers.params, change)
        # The decay warms up, so that the first parameters are soon forgotten.
        decay = jnp.minimum(preset.ema, (1 + numbers.step) / (10 + numbers.step))
        average = optax.incremental_update(params, numbers.average, 1 - decay)
        return Numbers(numbers.step + 1, params, average, state), value

    numbers, losses = jax.lax.scan(update, numbers, (x, labels))
    return numbers, losses.mean()


def velocity(model: DiT, params: dict, labels: jax.Array) -> flow.Velocity:
    """The model as a function of noisy latents and times."""
    return lambda x, times: model.apply({"params": params}, x, times, labels)


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """Endless places of samples, shuffled anew in every epoch."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(count)


def _take(order: Iterator[int], count: int) -> list[int]:
    return [next(order) for _ in range(count)]
