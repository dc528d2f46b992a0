"""The training objective except for its adversarial term, and its normalization across sample shapes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vaejax.losses import latent as latent_terms
from vaejax.losses.alignment import Alignment
from vaejax.losses.corruption import Corruption
from vaejax.losses.crops import random_windows
from vaejax.losses.latent import LatentSettings
from vaejax.models.posterior import DiagonalGaussian
from vaejax.models.resample import stem
from vaejax.networks.lpips import lpips

Terms = dict[str, jax.Array]
# Parameters of the frozen networks that terms need, by name: 'lpips' for 'perceptual', 'alignment' for
# 'alignment', and 'reference' for 'anchor', 'teacher' and 'features'.
Networks = Mapping[str, dict]

NORMALIZATIONS = ("sum", "mean", "reference")
HIGH_PASS_SIGMA = 1.0  # standard deviation of the Gaussian blur, in pixels
CHARBONNIER_EPSILON = 1e-3


def laplace_nll(
    x: Float[Array, "B T H W C"], x_hat: Float[Array, "B T H W C"], log_scale: Float[Array, ""]
) -> Float[Array, "B T H W C"]:
    """Returns -log p(x | x_hat) in nats per element, for a Laplace distribution of scale exp(log_scale)."""
    return jnp.abs(x - x_hat) * jnp.exp(-log_scale) + log_scale + math.log(2)


def gaussian_nll(
    x: Float[Array, "B T H W C"], x_hat: Float[Array, "B T H W C"], log_scale: Float[Array, ""]
) -> Float[Array, "B T H W C"]:
    """Returns -log p(x | x_hat) in nats per element, for a Gaussian of standard deviation exp(log_scale)."""
    return 0.5 * jnp.square((x - x_hat) * jnp.exp(-log_scale)) + log_scale + 0.5 * math.log(2 * math.pi)


LIKELIHOODS = {"laplace": laplace_nll, "gaussian": gaussian_nll}


def implied_error(likelihood: str, nll: float, log_scale: float) -> float:
    """The error that a mean NLL implies: mean absolute for 'laplace', mean squared for 'gaussian'."""
    if likelihood == "laplace":
        return math.exp(log_scale) * (nll - log_scale - math.log(2))
    return 2 * math.exp(2 * log_scale) * (nll - log_scale - 0.5 * math.log(2 * math.pi))


def high_pass(x: Float[Array, "B T H W C"], x_hat: Float[Array, "B T H W C"]) -> Float[Array, ""]:
    """Computes the L1 distance of high frequencies: frames minus blurred frames (LiteVAE, arXiv 2405.14477).

    Args:
      x: pixels (B, T, H, W, C) in [-1, 1].
      x_hat: reconstruction of x, of the same shape.

    Returns:
      Mean () per pixel value.
    """
    error = x - x_hat
    return jnp.abs(error - _blur(error)).mean()


def wavelet(x: Float[Array, "B T H W C"], x_hat: Float[Array, "B T H W C"]) -> Float[Array, ""]:
    """Computes the Charbonnier distance of the high Haar bands of each frame (LiteVAE, arXiv 2405.14477).

    The distance of a difference d is sqrt(d² + ε²) - ε, with ε = CHARBONNIER_EPSILON.

    Args:
      x: pixels (B, T, H, W, C) in [-1, 1], H and W even.
      x_hat: reconstruction of x, of the same shape.

    Returns:
      Mean () over the coefficients of the high bands.
    """
    bands = stem(x - x_hat, 2, "haar")[..., x.shape[-1] :]
    return (jnp.sqrt(jnp.square(bands) + CHARBONNIER_EPSILON**2) - CHARBONNIER_EPSILON).mean()


def temporal(x: Float[Array, "B T H W C"], x_hat: Float[Array, "B T H W C"]) -> Float[Array, ""]:
    """Computes the L1 distance between the frame differences of x and x_hat, against flicker and lost motion.

    Args:
      x: pixels (B, T, H, W, C) in [-1, 1].
      x_hat: reconstruction of x, of the same shape.

    Returns:
      Mean () per pixel value; 0 for images.
    """
    error = x - x_hat
    return jnp.abs(jnp.diff(error, axis=1)).mean() if x.shape[1] > 1 else jnp.zeros(())


# Terms that sharpen reconstructions beyond a pixelwise likelihood. A new term needs an entry here and a
# weight in `WeightsConfig`.
DETAIL_TERMS = {"high_pass": high_pass, "wavelet": wavelet, "temporal": temporal}
# Terms that need further passes of the networks; train/step.py computes them.
FORWARD_TERMS = ("equivariance", "alignment", "anchor", "teacher", "features")
# The names of all terms and of their weights; losses/adversarial.py computes the term 'adversarial'.
TERMS = (
    "reconstruction",
    "kl",
    "perceptual",
    "adversarial",
    *DETAIL_TERMS,
    "outliers",
    "roughness",
    *FORWARD_TERMS,
)


@flax.struct.dataclass
class Outputs:
    """The autoencoder's outputs for a batch x (B, T, H, W, C).

    Attributes:
      x_hat: reconstruction (B, T, H, W, C).
      posterior: posterior over latents (b, t, h, w, c).
      z: sample (b, t, h, w, c) of the posterior.
      log_scale: learned log-scale () of the likelihood.
      terms: values () of those FORWARD_TERMS that have a weight, by name.
    """

    x_hat: Float[Array, "B T H W C"]
    posterior: DiagonalGaussian
    z: Float[Array, "b t h w c"]
    log_scale: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Objective:
    """L = scale(shape) · Σ_k w_k · term_k, where each term is a mean per pixel value, frame or latent.

    scale(shape) is C·T·H·W times a factor that depends on the normalization:

    - 'sum', factor 1: every pixel counts the same, so a video outweighs an image by its size.
    - 'mean', factor 1/(C·T·H·W): every sample counts the same, so a pixel of an image outweighs one of a
      video.
    - 'reference', factor C·T'·H'·W'/(C·T·H·W) with a fixed reference shape (T', H', W'): every sample counts
      the same, and the loss has the magnitude of a sum over one sample of the reference shape.

    Attributes:
      weights: weight of each of TERMS. A term with a missing or zero weight is not computed, except
        'reconstruction' and 'kl', which are also metrics.
      likelihood: 'laplace' or 'gaussian', with one learned log-scale.
      normalization: 'sum', 'mean' or 'reference'.
      reference: reference shape (T', H', W').
      perceptual_network: LPIPS backbone, 'vgg16' or 'alexnet'.
      perceptual_frames: maximum number of frames per clip that LPIPS compares.
      perceptual_side: maximum side of the compared window in pixels; 0 compares whole frames.
      perceptual_dtype: compute dtype of the LPIPS convolutions.
      latent: settings of the latent terms.
      corruption: corruptions of the latent before the decoder.
      alignment: settings of the term 'alignment'.
    """

    weights: Mapping[str, float]
    likelihood: str
    normalization: str
    reference: tuple[int, int, int]
    perceptual_network: str
    perceptual_frames: int
    perceptual_side: int
    perceptual_dtype: str
    latent: LatentSettings
    corruption: Corruption
    alignment: Alignment

    @classmethod
    def of(cls, config: Any) -> "Objective":
        """Builds the objective from a whole configuration."""
        loss, perceptual = config.loss, config.loss.perceptual
        return cls(
            weights={name: getattr(loss.weights, name) for name in TERMS},
            likelihood=loss.likelihood,
            normalization=loss.normalization,
            reference=tuple(loss.reference),
            perceptual_network=perceptual.network,
            perceptual_frames=perceptual.frames,
            perceptual_side=perceptual.side,
            perceptual_dtype=config.model.dtype,
            latent=LatentSettings.of(loss.latent),
            corruption=Corruption.of(loss.latent),
            alignment=Alignment.of(loss.alignment),
        )

    def scale(self, shape: tuple[int, ...]) -> float:
        """Returns the factor on the sum of weighted terms for samples of shape (T, H, W, C)."""
        size, reference = math.prod(shape), shape[-1] * math.prod(self.reference)
        return {"sum": size, "mean": 1.0, "reference": reference}[self.normalization]

    def uses(self, term: str) -> bool:
        """Returns whether a term has a positive weight."""
        return self.weights.get(term, 0.0) > 0

    def without(self, *terms: str) -> "Objective":
        """Returns the same objective with some terms removed."""
        kept = {name: weight for name, weight in self.weights.items() if name not in terms}
        return dataclasses.replace(self, weights=kept)

    def likelihood_terms(
        self,
        x: Float[Array, "B T H W C"],
        x_hat: Float[Array, "B T H W C"],
        posterior: DiagonalGaussian,
        log_scale: Float[Array, ""],
    ) -> dict[str, Float[Array, " B"]]:
        """Computes 'nll' and 'kl' (B,) of every sample in nats per pixel value: sums divided by C·T·H·W."""
        nll = LIKELIHOODS[self.likelihood](x, x_hat, log_scale)
        all_but_batch = tuple(range(1, x.ndim))
        kl = posterior.kl().sum((2, 3)).sum((1, 2))  # in two steps: shorter float32 sums lose less precision
        return {"nll": nll.mean(all_but_batch), "kl": kl / math.prod(x.shape[1:])}

    def __call__(
        self, x: Float[Array, "B T H W C"], out: Outputs, networks: Networks, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Computes the loss of one batch without its adversarial term.

        Args:
          x: pixels (B, T, H, W, C) in [-1, 1].
          out: outputs of the autoencoder for x.
          networks: parameters of the frozen networks; 'lpips' if the perceptual term is on.
          key: random key of the frames and windows that LPIPS compares.

        Returns:
          The loss () and a dictionary of scalar metrics. 'nll' (the term 'reconstruction') and 'kl' are in
          nats per pixel value; the others are named as in TERMS. 'loss' is the weighted sum before `scale`.
        """
        by_sample = self.likelihood_terms(x, out.x_hat, out.posterior, out.log_scale)
        terms = {"nll": by_sample["nll"].mean(), "kl": by_sample["kl"].mean()}
        if self.uses("perceptual"):
            a, b = random_windows(key, (x, out.x_hat), self.perceptual_frames, self.perceptual_side)
            dtype = jnp.dtype(self.perceptual_dtype)
            terms["perceptual"] = lpips(networks["lpips"], a, b, self.perceptual_network, dtype).mean()
        for name, term in DETAIL_TERMS.items():
            if self.uses(name):
                terms[name] = term(x, out.x_hat)
        if self.uses("outliers"):
            terms["outliers"] = latent_terms.outliers(out.z, self.latent.outlier_radius)
        if self.uses("roughness"):
            terms["roughness"] = latent_terms.roughness(out.z, self.latent.correlation)
        terms |= out.terms
        by_weight = {"reconstruction" if name == "nll" else name: value for name, value in terms.items()}
        total: Any = sum(self.weights.get(name, 0.0) * value for name, value in by_weight.items())
        return self.scale(x.shape[1:]) * total, {"loss": total, **terms}


def _blur(x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Blurs every frame with a Gaussian; the padding repeats border pixels."""
    reach = round(3 * HIGH_PASS_SIGMA)
    kernel = jnp.exp(-0.5 * (jnp.arange(-reach, reach + 1) / HIGH_PASS_SIGMA) ** 2)
    kernel /= kernel.sum()
    blurred: Any = x
    for axis in (2, 3):
        padding = [(reach, reach) if a == axis else (0, 0) for a in range(x.ndim)]
        padded, size = jnp.pad(blurred, padding, mode="edge"), x.shape[axis]
        blurred = sum(k * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i, k in enumerate(kernel))
    return blurred
