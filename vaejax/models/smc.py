"""Self-modulated convolution: normalizes weights instead of activations (LiteVAE, arXiv 2405.14477)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-8


def modulate(
    kernel: Float[Array, "kt kh kw C features"], scale: Float[Array, " C"], gain: Float[Array, ""]
) -> Float[Array, "kt kh kw C features"]:
    """Computes the modulated kernel w'_ijk = gain · s_i w_ijk / sqrt(Σ_{i,k} (s_i w_ijk)² + ε).

    The indices are input channel i, output channel j and kernel position k. The kernel of every output
    channel has norm |gain|, so growing weights cannot make activations grow. The computation is always in
    float32: in bfloat16 a sum of thousands of squares loses its small terms.

    Args:
      kernel: raw weights w (kt, kh, kw, C, C').
      scale: learned scales s_i (C,) of the input channels, initially 1.
      gain: learned gain ().

    Returns:
      Float32 kernel (kt, kh, kw, C, C') for an ordinary convolution.
    """
    modulated = kernel.astype(jnp.float32) * scale.astype(jnp.float32)[:, None]
    energy = jnp.sum(jnp.square(modulated), axis=tuple(range(kernel.ndim - 1)))
    return modulated * (gain.astype(jnp.float32) * jax.lax.rsqrt(energy + EPSILON))
