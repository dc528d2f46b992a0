"""The posterior over latents: a diagonal Gaussian (VAE, arXiv 1312.6114)."""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

# Initial log-variance. Sampling noise is small at first, so that the decoder soon learns to reconstruct; the
# KL term raises the log-variance later.
LOG_VARIANCE_INIT = -8.0
LOG_VARIANCE_RANGE = (-30.0, 20.0)  # keeps the variance finite and above 0 in float32


@flax.struct.dataclass
class DiagonalGaussian:
    """The elementwise Gaussian q(z|x) = N(mean, exp(log_variance)), in float32.

    Attributes:
      mean: means (b, t, h, w, c).
      log_variance: natural logarithms of the variances (b, t, h, w, c).
    """

    mean: Float[Array, "b t h w c"]
    log_variance: Float[Array, "b t h w c"]

    @classmethod
    def from_moments(cls, moments: Float[Array, "*latent moments"]) -> "DiagonalGaussian":
        """Splits (b, t, h, w, 2c) into means and log-variances; clips the latter to LOG_VARIANCE_RANGE."""
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE))

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*latent"]:
        """Draws a sample z (b, t, h, w, c)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Float[Array, "*latent"]:
        """Computes KL(q || N(0, 1)) of each latent element (b, t, h, w, c), in nats."""
        variance = jnp.exp(self.log_variance)
        return 0.5 * (jnp.square(self.mean) + variance - 1.0 - self.log_variance)
