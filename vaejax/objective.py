"""The loss of one bucket: reconstruction and KL, normalised so that a term means the same at every shape."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from vaejax.models.posterior import DiagonalGaussian

Terms = dict[str, jax.Array]


def laplace_nll(x: jax.Array, x_hat: jax.Array, log_scale: jax.Array) -> jax.Array:
    """-log p(x | x_hat) of a Laplace distribution of scale exp(s), element by element, in nats."""
    return jnp.abs(x - x_hat) * jnp.exp(-log_scale) + log_scale + math.log(2)


def gaussian_nll(x: jax.Array, x_hat: jax.Array, log_scale: jax.Array) -> jax.Array:
    """-log p(x | x_hat) of a Gaussian of standard deviation exp(s), element by element, in nats."""
    return 0.5 * jnp.square((x - x_hat) * jnp.exp(-log_scale)) + log_scale + 0.5 * math.log(2 * math.pi)


LIKELIHOODS = {"laplace": laplace_nll, "gaussian": gaussian_nll}
NORMALIZATIONS = ("sum", "mean", "reference")


@dataclasses.dataclass(frozen=True)
class Objective:
    """L = normalizer · (1/B) Σ_i (w_rec Σ nll + w_kl Σ KL), the ELBO's own ratio of terms at every shape.

    With 'sum' (normalizer 1) a video outweighs an image by its size; with 'mean', 1/(C·T·H·W), a pixel of an
    image outweighs a pixel of a video; with 'reference', |S_ref|/(C·T·H·W), a bucket weighs what its own
    weight says and the loss keeps the magnitude of a sum over one sample of the reference shape.

    Attributes:
      likelihood: 'laplace' or 'gaussian', with one learned log-scale.
      normalization: 'sum', 'mean' or 'reference'.
      reference: (T, H, W) of S_ref.
      reconstruction, kl: the terms' weights.
    """

    likelihood: str = "laplace"
    normalization: str = "reference"
    reference: tuple[int, int, int] = (1, 64, 64)
    reconstruction: float = 1.0
    kl: float = 1e-6

    def normalizer(self, shape: tuple[int, ...]) -> float:
        """The factor on a sum over one sample of `shape` (T, H, W, C)."""
        size = math.prod(shape)
        reference = shape[-1] * math.prod(self.reference)
        return {"sum": 1.0, "mean": 1.0 / size, "reference": reference / size}[self.normalization]

    def terms(
        self, x: jax.Array, x_hat: jax.Array, posterior: DiagonalGaussian, log_scale: jax.Array
    ) -> Terms:
        """The terms of every sample, for the loss and for people.

        Args:
          x: (B, T, H, W, C) in [-1, 1].
          x_hat: its reconstruction, same shape.
          posterior: over (b, t, h, w, c).
          log_scale: () the likelihood's s.

        Returns:
          {'nll', 'kl'} each (B,) in nats a pixel value: the sum over the sample divided by C·T·H·W, whatever
          the normalisation, so that shapes can be compared.
        """
        nll = LIKELIHOODS[self.likelihood](x, x_hat, log_scale)
        every = tuple(range(1, x.ndim))
        return {"nll": nll.mean(every), "kl": posterior.kl().sum(every) / math.prod(x.shape[1:])}

    def __call__(
        self, x: jax.Array, x_hat: jax.Array, posterior: DiagonalGaussian, log_scale: jax.Array
    ) -> tuple[jax.Array, Terms]:
        """The loss of one batch, (), and its terms, each (); arguments as in `terms`.

        'loss' among the terms is the weighted sum per pixel value, the loss itself its |S_ref|-fold.
        """
        terms = {name: values.mean() for name, values in self.terms(x, x_hat, posterior, log_scale).items()}
        per_pixel = self.reconstruction * terms["nll"] + self.kl * terms["kl"]
        scale = math.prod(x.shape[1:]) * self.normalizer(x.shape[1:])
        return scale * per_pixel, {"loss": per_pixel, **terms}
