"""Flow matching on straight paths (rectified flow, arXiv 2209.03003 and 2210.02747): path, loss, solver.

The path is x_t = (1 - t)·x + t·noise, from data at t = 0 to noise at t = 1. A model predicts the velocity
dx_t/dt = noise - x from x_t and t. A `Velocity` maps x_t (b, ...) and times (b,) to an array like x_t.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Velocity = Callable[[jax.Array, jax.Array], jax.Array]

VALIDATION_TIMES = (np.arange(8) + 0.5) / 8  # midpoints of eight equal parts of [0, 1]


def losses(velocity: Velocity, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """The flow-matching loss of each sample: the mean squared error of its velocity, (b,).

    Args:
      velocity: the model.
      x: data, (b, ...).
      noise: standard normal noise, like x.
      times: times (b,) in [0, 1].
    """
    t = times.reshape(-1, *[1] * (x.ndim - 1))
    error = velocity((1 - t) * x + t * noise, times) - (noise - x)
    return jnp.square(error).reshape(len(x), -1).mean(1)


def logit_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Training times in (0, 1), densest near 0.5, where prediction is hardest (arXiv 2403.03206, 3.1)."""
    return jax.nn.sigmoid(jax.random.normal(key, shape))


def white_loss(times: np.ndarray, power: float = 1.0) -> np.ndarray:
    """The flow-matching loss, at each time, of a model that treats x as white noise of variance 1.

    A model that has learned nothing has this loss on normalized latents x. For white noise, the best
    prediction of the velocity v is linear: E[v | x_t] = (2t - 1) / ((1 - t)² + t²) · x_t.

    Args:
      times: times in [0, 1].
      power: actual mean square of x; it is 1 for training latents but need not be for held-out ones.
    """
    return ((1 - times) ** 2 + power * times**2) / ((1 - times) ** 2 + times**2) ** 2


def solve(velocity: Velocity, noise: jax.Array, steps: int) -> jax.Array:
    """Integrates the velocity from noise at t = 1 to samples at t = 0 by Heun's method with equal steps."""

    def step(x, i):
        start, stop = 1 - i / steps, 1 - (i + 1) / steps
        slope = velocity(x, jnp.full(len(x), start))
        ahead = velocity(x - slope / steps, jnp.full(len(x), stop))
        return x - (slope + ahead) / (2 * steps), None

    return jax.lax.scan(step, noise, jnp.arange(steps, dtype=jnp.float32))[0]
