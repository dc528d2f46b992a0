"""Self-modulated convolution: normalise the weights, not the activations (LiteVAE, arXiv 2405.14477)."""

import jax
import jax.numpy as jnp

EPSILON = 1e-8


def modulate(kernel: jax.Array, scale: jax.Array, gain: jax.Array) -> jax.Array:
    """Folds the modulation into one kernel: w'_ijk = gain · s_i w_ijk / sqrt(Σ_{i,k} (s_i w_ijk)² + ε).

    Every output channel gets unit norm over its fan-in, so activations cannot grow through the weights; the
    scale s decides how much each input channel counts. Computed in float32 whatever the compute dtype,
    because the sum of squares over a fan-in of thousands loses its small terms in bfloat16.

    Args:
      kernel: (kt, kh, kw, c_in, c_out) raw weights w.
      scale: (c_in,) one learned scale s_i an input channel, 1 at the start.
      gain: () one learned gain, 1 at the start.

    Returns:
      (kt, kh, kw, c_in, c_out) float32 kernel for an ordinary convolution.
    """
    modulated = kernel.astype(jnp.float32) * scale.astype(jnp.float32)[:, None]
    energy = jnp.sum(jnp.square(modulated), axis=tuple(range(kernel.ndim - 1)))
    return modulated * (gain.astype(jnp.float32) * jax.lax.rsqrt(energy + EPSILON))
