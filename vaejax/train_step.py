"""One update: the gradients of every bucket, summed by weight, then one step of the optimiser. Pure."""

import jax
import jax.numpy as jnp
import optax

from vaejax import optim
from vaejax.models.autoencoder import Autoencoder
from vaejax.objective import Objective, Terms
from vaejax.train_state import TrainState


def pixels(frames: jax.Array) -> jax.Array:
    """uint8 (B, T, H, W, C) to float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def bucket_gradients(
    state: TrainState,
    gradients: dict,
    frames: jax.Array,
    key: jax.Array,
    weight: float,
    *,
    model: Autoencoder,
    objective: Objective,
) -> tuple[dict, Terms]:
    """Adds weight · ∇L of one bucket's batch to the gradients of the buckets before it.

    Args:
      state: whose params are differentiated.
      gradients: tree like state.params.
      frames: (B, T, H, W, C) uint8, the whole batch over all devices.
      key: of this run's noise; step and shape are folded in here, so noise never repeats.
      weight: the bucket's.
      model: the autoencoder.
      objective: the loss.

    Returns:
      The summed gradients and the bucket's terms, each ().
    """
    x = pixels(frames)
    for number in (state.step, *frames.shape[1:4]):
        key = jax.random.fold_in(key, number)

    def loss(params):
        x_hat, posterior = model.apply({"params": params["autoencoder"]}, x, key)
        return objective(x, x_hat, posterior, params["likelihood"]["log_scale"])

    new, terms = jax.grad(loss, has_aux=True)(state.params)
    return jax.tree.map(lambda old, g: old + weight * g, gradients, new), terms


def apply_gradients(
    state: TrainState,
    gradients: dict,
    *,
    optimizer: optax.GradientTransformation,
    clipping: optax.GradientTransformation,
    ema_decay: float,
) -> tuple[TrainState, Terms]:
    """Clips, steps and averages; also returns the norms that show a run's health, each ()."""
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    # The optimiser clips for itself; XLA merges this second, stateless computation with its own.
    clipped, _ = clipping.update(gradients, clipping.init(state.params), state.params)
    norms = {
        "grad_norm": optax.tree.norm(gradients),
        "clipped_grad_norm": optax.tree.norm(clipped),
        "update_norm": optax.tree.norm(updates),
        "param_norm": optax.tree.norm(params),
        "log_scale": params["likelihood"]["log_scale"],
    }
    average = optim.ema(state.ema, params, ema_decay, state.step)
    return TrainState(state.step + 1, params, average, optimizer_state), norms
