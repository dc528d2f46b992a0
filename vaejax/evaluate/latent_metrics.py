"""The health of a latent space, and the statistics by which a diffusion user normalises latents.

Reconstruction tells none of this: a channel may carry nothing, a few may carry all, and latents that look
like noise decode well and are hard to learn.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.evaluate.codecs.base import Codec
from vaejax.evaluate.metrics import LEVEL

DEAD, EXPLODING = 0.01, 10.0  # times the median channel's standard deviation
RHO = (0.25, 0.5, 0.75)  # of SEC


class Moments:
    """Sums over latents, from which the statistics of their channels follow.

    They are float64 and grow with the number of channels, never with that of latents; latents of several
    sizes may be added.
    """

    def __init__(self):
        self._samples = self._count = 0
        self._total = self._products = self._kl = 0.0
        self._least, self._largest = math.inf, -math.inf
        self._high = np.zeros((len(RHO), 1))

    def add(self, latents: np.ndarray, log_variance: np.ndarray | None = None) -> None:
        """Adds a batch.

        Args:
          latents: (b, t, h, w, c); of a VAE the posterior's means.
          log_variance: of the posterior, like latents, natural logarithm; None where there is none.
        """
        z = np.asarray(latents, np.float64)
        pixels = z.reshape(-1, z.shape[-1])
        self._samples += len(z)
        self._count += len(pixels)
        self._total = self._total + pixels.sum(0)
        self._products = self._products + pixels.T @ pixels
        self._least = np.minimum(self._least, pixels.min(0))
        self._largest = np.maximum(self._largest, pixels.max(0))
        self._high = self._high + _high_frequency_energy(z)
        if log_variance is not None:
            log_variance = np.asarray(log_variance, np.float64)
            kl = 0.5 * (z**2 + np.exp(log_variance) - 1 - log_variance)
            self._kl = self._kl + kl.sum((0, 1, 2, 3))

    def statistics(self) -> dict:
        """The statistics, plain numbers and lists that JSON can hold.

        samples: latents added.
        mean, std: of each channel over samples, time and space. (z - mean) / std is what a diffusion model
          should learn.
        peak: of each channel, the distance of its farthest value from the mean, in its standard deviations.
        dead: channels whose standard deviation is below a hundredth of the median channel's: they carry
          nothing.
        exploding: channels where it is above ten times the median channel's, or not finite.
        spectrum: eigenvalues of the covariance of the channels, falling.
        effective_rank: exp of the entropy of the spectrum as shares (Roy & Vetterli 2007): how many channels'
          worth of independent numbers there are, 1 to c.
        sec: SEC_rho by rho, the share of the energy of a channel's 2D cosine transform with
          u + v > rho (H + W - 2), H x W the latent's size, u and v from 0 (arXiv 2606.03578): high
          frequencies, which a diffusion model learns last. The mean over channels, each normalised first, so
          that neither its mean nor its scale counts; dead ones are left out. To be compared at one latent
          shape only.
        kl: of each channel, the mean KL of its posterior from N(0, 1) in nats a latent value; none without
          posterior.

        Raises:
          ValueError: if nothing was added.
        """
        if not self._count:
            raise ValueError("statistics of latents: none were added")
        mean = self._total / self._count
        covariance = self._products / self._count - np.outer(mean, mean)
        variance = np.maximum(np.diag(covariance), 0)
        std = np.sqrt(variance)
        middle = np.median(std[np.isfinite(std)]) if np.isfinite(std).any() else 0.0
        dead = (std < DEAD * middle) | (std == 0)
        farthest = np.maximum(self._largest - mean, mean - self._least)
        finite = np.isfinite(covariance).all()
        spectrum = (
            np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0) if finite else np.full_like(mean, np.nan)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = self._high / (self._count * variance)
            peak = np.where(dead, 0, farthest / std)
        alive = shares[:, ~dead]
        statistics = {
            "samples": self._samples,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "peak": peak.tolist(),
            "dead": np.flatnonzero(dead).tolist(),
            "exploding": np.flatnonzero(~(std <= EXPLODING * middle) & ~dead).tolist(),
            "spectrum": spectrum.tolist(),
            "effective_rank": _effective_rank(spectrum),
            "sec": {
                f"{rho:g}": float(s.mean()) if s.size else 0.0 for rho, s in zip(RHO, alive, strict=True)
            },
        }
        if np.ndim(self._kl):
            statistics["kl"] = (self._kl / self._count).tolist()
        return statistics


def of(codec: Codec, batches: Iterable[np.ndarray]) -> dict:
    """`Moments.statistics` of the latents that a codec gives batches (B, T, H, W, 3) of uint8 frames."""
    moments = Moments()
    for batch in batches:
        moments.add(*(codec.posterior(batch) if hasattr(codec, "posterior") else (codec.encode(batch),)))
    return moments.statistics()


def pooled(statistics: Sequence[dict]) -> tuple[list[float], list[float]]:
    """The mean and std of each channel over several sets of latents, each set counting the same.

    Args:
      statistics: of `Moments`, one a bucket: else the bucket of the largest clips would rule.
    """
    mean = np.mean([s["mean"] for s in statistics], axis=0)
    square = np.mean([np.square(s["mean"]) + np.square(s["std"]) for s in statistics], axis=0)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def viv(latents: np.ndarray, labels: Sequence) -> float:
    """Velocity irreducible variance (arXiv 2606.03578): how much crossing paths leave a flow unsure.

    (π/2) Σ √λ, λ the eigenvalues of the covariance of the whole latents of one class, averaged over classes
    by their shares; channels are normalised over all latents first. It is what is left of the flow matching
    loss of a Gaussian with these λ when nothing better can be learned: the integral over time of
    λ / ((1 - t)² + t² λ), summed. Few samples of a class span few directions: compare at one latent shape
    and one number of samples a class only.

    Args:
      latents: (N, t, h, w, c).
      labels: N of any kind; a class of fewer than two is left out.

    Returns:
      A number from 0, lower for latents that are easier to generate; NaN if no class has two.
    """
    z = np.asarray(latents, np.float64)
    axes = tuple(range(z.ndim - 1))
    std = z.std(axes)
    z = ((z - z.mean(axes)) / np.where(std > 0, std, 1)).reshape(len(z), -1)
    labels = np.asarray(labels)
    total = count = 0.0
    for label in np.unique(labels):
        members = z[labels == label]
        if len(members) > 1:
            # √λ are the singular values of the centred samples, over √(n - 1).
            roots = np.linalg.svd(members - members.mean(0), compute_uv=False) / math.sqrt(len(members) - 1)
            total += len(members) * math.pi / 2 * roots.sum()
            count += len(members)
    return float(total / count) if count else math.nan


def equivariance(
    decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray, frames: np.ndarray
) -> dict[str, np.ndarray]:
    """How far a transformed latent decodes from the equally transformed clip.

    Args:
      decode: latents (b, t, h', w', c) to frames (B, T, H', W', 3) in [-1, 1].
      latents: (b, t, h, w, c).
      frames: (B, T, H, W, 3) in [-1, 1], what the latents were encoded from.

    Returns:
      'equivariance_scale': halved in height and width (antialiased linear, as the training term
      `latent_terms.equivariance`), none for latents of one pixel; 'equivariance_rotation': turned by 90
      degrees. Each (B,), the mean absolute error in 8-bit levels.
    """
    z, x = jnp.asarray(latents), jnp.asarray(frames)
    factor = x.shape[2] // z.shape[2]
    pairs = {"rotation": (jnp.rot90(z, axes=(2, 3)), jnp.rot90(x, axes=(2, 3)))}
    if min(z.shape[2:4]) > 1:
        h, w = (round(0.5 * size) for size in z.shape[2:4])
        pairs["scale"] = _resized(z, h, w), _resized(x, factor * h, factor * w)
    return {
        f"equivariance_{name}": np.asarray(_distance(np.asarray(decode(np.asarray(turned))), wanted))
        for name, (turned, wanted) in pairs.items()
    }


def _effective_rank(spectrum: np.ndarray) -> float:
    total = spectrum.sum()
    if not total > 0 or not np.isfinite(total):
        return 0.0
    shares = spectrum[spectrum > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _high_frequency_energy(z: np.ndarray) -> np.ndarray:
    """Energy of the orthonormal 2D cosine transform beyond each rho, summed: (rhos, c) of (b, t, h, w, c)."""
    h, w = z.shape[2:4]
    spectrum = np.einsum("uh,bthwc->btuwc", _cosines(h), z, optimize=True)
    spectrum = np.einsum("vw,btuwc->btuvc", _cosines(w), spectrum, optimize=True)
    energy = np.square(spectrum).sum((0, 1))
    frequency = np.add.outer(np.arange(h), np.arange(w))
    return np.stack([energy[frequency > rho * (h + w - 2)].sum(0) for rho in RHO])


def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of n numbers as a matrix, a row a frequency."""
    matrix = np.cos(np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _resized(x: jax.Array, height: int, width: int) -> jax.Array:
    return jax.image.resize(x, (*x.shape[:2], height, width, x.shape[-1]), "linear")


@jax.jit
def _distance(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.abs(x - y).mean((-2, -1)).mean((-2, -1)) / LEVEL
