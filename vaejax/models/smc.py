"""Self-modulated convolution: normalizes weights instead of activations (LiteVAE, arXiv 2405.14477)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-8


def modulate(
    kernel: Float[Array, "kt kh kw C features"], scale: Float[Array, " C"], gain: Float[Array, ""]
) -> Float[Array, "kt kh kw C features"]:
    """Folds the modulation into one kernel: w'_ijk = gain · s_i w_ijk / sqrt(Σ_{i,k} (s_i w_ijk)² + ε).

    The kernel of every output channel gets unit norm, so weights cannot make activations grow. The scale s
    weights the input channels. The computation is in float32 for any compute dtype: a sum of thousands of
    squares loses its small terms in bfloat16.

    Args:
      kernel: (kt, kh, kw, C, C') raw weights w.
      scale: (C,) learned scales s_i of the input channels, initially 1.
      gain: () learned gain.

    Returns:
      (kt, kh, kw, C, C') float32 kernel of an ordinary convolution.
    """
    modulated = kernel.astype(jnp.float32) * scale.astype(jnp.float32)[:, None]
    energy = jnp.sum(jnp.square(modulated), axis=tuple(range(kernel.ndim - 1)))
    return modulated * (gain.astype(jnp.float32) * jax.lax.rsqrt(energy + EPSILON))
