"""The encoder's answer: a diagonal Gaussian over latents (VAE, arXiv 1312.6114)."""

import flax.struct
import jax
import jax.numpy as jnp

LOG_VARIANCE_RANGE = (-30.0, 20.0)


@flax.struct.dataclass
class DiagonalGaussian:
    """q(z|x) = N(mean, exp(log_variance)), element by element, in float32.

    Attributes:
      mean: (b, t, h, w, c).
      log_variance: (b, t, h, w, c), natural logarithm.
    """

    mean: jax.Array
    log_variance: jax.Array

    @classmethod
    def from_moments(cls, moments: jax.Array) -> "DiagonalGaussian":
        """Splits (b, t, h, w, 2c) into mean and log-variance; the latter is clipped so exp stays finite."""
        mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(log_variance, *LOG_VARIANCE_RANGE))

    def sample(self, key: jax.Array) -> jax.Array:
        """Draws z of shape (b, t, h, w, c)."""
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise

    def kl(self) -> jax.Array:
        """KL(q || N(0, 1)) of every latent element, (b, t, h, w, c) nats (1312.6114, appendix B)."""
        variance = jnp.exp(self.log_variance)
        return 0.5 * (jnp.square(self.mean) + variance - 1.0 - self.log_variance)
