"""Flow matching on straight paths (rectified flow, arXiv 2209.03003 and 2210.02747): path, loss, solver.

x_t = (1 - t)·x + t·noise: data at t = 0, noise at t = 1, and the velocity dx_t/dt = noise - x is what a model
learns to predict from x_t and t. A velocity is a function (x_t, times) -> array like x_t, x_t of any shape
(b, ...), times (b,).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Velocity = Callable[[jax.Array, jax.Array], jax.Array]

VALIDATION_TIMES = (np.arange(8) + 0.5) / 8  # the middle of every eighth


def losses(velocity: Velocity, x: jax.Array, noise: jax.Array, times: jax.Array) -> jax.Array:
    """Squared error of the velocity, (b,), the mean over the numbers of each x.

    Args:
      velocity: the model.
      x: data (b, ...).
      noise: standard normal, like x.
      times: (b,) in [0, 1].
    """
    t = times.reshape(-1, *[1] * (x.ndim - 1))
    error = velocity((1 - t) * x + t * noise, times) - (noise - x)
    return jnp.square(error).reshape(len(x), -1).mean(1)


def logit_normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Times for training: more in the middle, where predicting is hardest (arXiv 2403.03206, section 3.1)."""
    return jax.nn.sigmoid(jax.random.normal(key, shape))


def white_loss(times: np.ndarray, power: float = 1.0) -> np.ndarray:
    """The loss at each time of the model that knows of x only that its numbers have mean 0 and variance 1.

    All that normalised latents give away without being learned: the best such prediction is linear,
    E[v | x_t] = (2t - 1) / ((1 - t)² + t²) · x_t.

    Args:
      times: in [0, 1].
      power: the mean square of the numbers of x that it is asked of; of held-out ones it need not be 1.
    """
    return ((1 - times) ** 2 + power * times**2) / ((1 - times) ** 2 + times**2) ** 2


def solve(velocity: Velocity, noise: jax.Array, steps: int) -> jax.Array:
    """Follows the velocity from noise at t = 1 to samples at t = 0, by Heun's method in equal steps."""

    def step(x, i):
        start, stop = 1 - i / steps, 1 - (i + 1) / steps
        slope = velocity(x, jnp.full(len(x), start))
        ahead = velocity(x - slope / steps, jnp.full(len(x), stop))
        return x - (slope + ahead) / (2 * steps), None

    return jax.lax.scan(step, noise, jnp.arange(steps, dtype=jnp.float32))[0]
