"""The loss of one bucket: every term normalised so that it means the same at every shape."""

import dataclasses
import math
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp

from vaejax.losses import detail
from vaejax.losses import latent as latent_terms
from vaejax.losses.glimpse import window
from vaejax.losses.latent import LatentSettings
from vaejax.models.posterior import DiagonalGaussian
from vaejax.networks.lpips import lpips

Terms = dict[str, jax.Array]


def laplace_nll(x: jax.Array, x_hat: jax.Array, log_scale: jax.Array) -> jax.Array:
    """-log p(x | x_hat) of a Laplace distribution of scale exp(s), element by element, in nats."""
    return jnp.abs(x - x_hat) * jnp.exp(-log_scale) + log_scale + math.log(2)


def gaussian_nll(x: jax.Array, x_hat: jax.Array, log_scale: jax.Array) -> jax.Array:
    """-log p(x | x_hat) of a Gaussian of standard deviation exp(s), element by element, in nats."""
    return 0.5 * jnp.square((x - x_hat) * jnp.exp(-log_scale)) + log_scale + 0.5 * math.log(2 * math.pi)


LIKELIHOODS = {"laplace": laplace_nll, "gaussian": gaussian_nll}
NORMALIZATIONS = ("sum", "mean", "reference")
# Every term by the name of its weight; 'adversarial' is played in adversarial.py.
TERMS = (
    "reconstruction",
    "kl",
    "perceptual",
    "adversarial",
    *detail.TERMS,
    "outliers",
    "roughness",
    "equivariance",
)


@flax.struct.dataclass
class Outputs:
    """What the generator gives for a batch x.

    Attributes:
      x_hat: (B, T, H, W, C), the reconstruction.
      posterior: over (b, t, h, w, c).
      z: a sample of it.
      log_scale: () the likelihood's s.
      equivariance: () see `latent_terms.equivariance`; 0 where it does not count.
    """

    x_hat: jax.Array
    posterior: DiagonalGaussian
    z: jax.Array
    log_scale: jax.Array
    equivariance: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """L = scale(shape) · Σ_k w_k · term_k, each term a mean per pixel value or per frame, for every shape.

    scale(shape) is C·T·H·W times the factor of the normalisation. With 'sum', 1, a video outweighs an image
    by its size; with 'mean', 1/(C·T·H·W), a pixel of an image outweighs a pixel of a video; with 'reference',
    |S_ref|/(C·T·H·W), a bucket weighs what its own weight says and the loss keeps the magnitude of a sum over
    one sample of the reference shape.

    Attributes:
      weights: of TERMS; one that is missing or 0 is not computed.
      likelihood: 'laplace' or 'gaussian', with one learned log-scale.
      normalization: 'sum', 'mean' or 'reference'.
      reference: (T, H, W) of S_ref.
      perceptual_network: of LPIPS.
      perceptual_frames, perceptual_side: the most frames of a clip, and pixels each way, that LPIPS sees.
      perceptual_dtype: of its convolutions.
      latent: settings of the latent's terms.
    """

    weights: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"reconstruction": 1.0, "kl": 1e-6}
    )
    likelihood: str = "laplace"
    normalization: str = "reference"
    reference: tuple[int, int, int] = (1, 64, 64)
    perceptual_network: str = "vgg16"
    perceptual_frames: int = 4
    perceptual_side: int = 0
    perceptual_dtype: str = "float32"
    latent: LatentSettings = LatentSettings()  # noqa: RUF009 - frozen

    def scale(self, shape: tuple[int, ...]) -> float:
        """The factor on a mean over one sample of `shape` (T, H, W, C)."""
        size, reference = math.prod(shape), shape[-1] * math.prod(self.reference)
        return {"sum": size, "mean": 1.0, "reference": reference}[self.normalization]

    def uses(self, term: str) -> bool:
        """Whether a term counts."""
        return self.weights.get(term, 0.0) > 0

    def without(self, *terms: str) -> "Objective":
        """The same without some terms."""
        kept = {name: weight for name, weight in self.weights.items() if name not in terms}
        return dataclasses.replace(self, weights=kept)

    def likelihood_terms(
        self, x: jax.Array, x_hat: jax.Array, posterior: DiagonalGaussian, log_scale: jax.Array
    ) -> Terms:
        """{'nll', 'kl'} of every sample, (B,), in nats a pixel value: sums over a sample over C·T·H·W."""
        nll = LIKELIHOODS[self.likelihood](x, x_hat, log_scale)
        every = tuple(range(1, x.ndim))
        kl = posterior.kl().sum((2, 3)).sum((1, 2))  # short sums of float32
        return {"nll": nll.mean(every), "kl": kl / math.prod(x.shape[1:])}

    def __call__(self, x: jax.Array, out: Outputs, lpips_params: dict, key: jax.Array):
        """The loss of one batch without its adversarial term.

        Args:
          x: (B, T, H, W, C) in [-1, 1].
          out: what the generator makes of it.
          lpips_params: of the perceptual network; {} where it does not count.
          key: draws what LPIPS looks at.

        Returns:
          The loss, (), and its terms, each (): 'loss', their weighted sum, so the loss without its scale;
          'nll' and 'kl' in nats a pixel value; the others by their names.
        """
        both = self.likelihood_terms(x, out.x_hat, out.posterior, out.log_scale)
        terms = {"nll": both["nll"].mean(), "kl": both["kl"].mean()}
        if self.uses("perceptual"):
            seen = window(key, (x, out.x_hat), self.perceptual_frames, self.perceptual_side)
            dtype = jnp.dtype(self.perceptual_dtype)
            terms["perceptual"] = lpips(lpips_params, *seen, self.perceptual_network, dtype).mean()
        for name, term in detail.TERMS.items():
            if self.uses(name):
                terms[name] = term(x, out.x_hat)
        if self.uses("outliers"):
            terms["outliers"] = latent_terms.outliers(out.z, self.latent.outlier_radius)
        if self.uses("roughness"):
            terms["roughness"] = latent_terms.roughness(out.z, self.latent.correlation)
        if self.uses("equivariance"):
            terms["equivariance"] = out.equivariance
        weighed = {"reconstruction" if name == "nll" else name: value for name, value in terms.items()}
        total = sum(self.weights.get(name, 0.0) * value for name, value in weighed.items())
        return self.scale(x.shape[1:]) * total, {"loss": total, **terms}
