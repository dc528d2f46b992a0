"""Metrics of a latent space, and the channel statistics that diffusion models normalize latents with.

Reconstruction metrics do not show whether a channel carries nothing or a few channels carry everything.
Latents that decode well may also have so much energy at high frequencies that they are hard to generate.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.evaluate.codecs.base import Codec
from vaejax.evaluate.metrics import LEVEL
from vaejax.evaluate.moments import ChannelMoments

DEAD, EXPLODING = 0.01, 10.0  # thresholds relative to the median standard deviation of the channels
RHO = (0.25, 0.5, 0.75)  # cutoffs of 'sec' in `LatentMoments.statistics`, relative to the highest frequency


class LatentMoments:
    """Sums over latents, from which the statistics of their channels are computed.

    The sums are float64. Memory grows with the number of channels, not of latents. Latents of several sizes
    may be added.
    """

    def __init__(self):
        self._samples = 0
        self._pixels = ChannelMoments()
        self._kl: np.ndarray | None = None
        self._lowest, self._highest = np.array(math.inf), np.array(-math.inf)
        self._high_frequencies = np.zeros((len(RHO), 1))

    def add(self, latents: np.ndarray, log_variance: np.ndarray | None = None) -> None:
        """Adds a batch.

        Args:
          latents: (b, t, h, w, c); the posterior means of a VAE.
          log_variance: natural logarithm of the posterior variance, shaped like the latents; None for a codec
            without a posterior.
        """
        z = np.asarray(latents, np.float64)
        pixels = z.reshape(-1, z.shape[-1])
        self._samples += len(z)
        self._pixels.add(pixels)
        self._lowest = np.minimum(self._lowest, pixels.min(0))
        self._highest = np.maximum(self._highest, pixels.max(0))
        self._high_frequencies = self._high_frequencies + _high_frequency_energy(z)
        if log_variance is not None:
            log_variance = np.asarray(log_variance, np.float64)
            kl = (0.5 * (z**2 + np.exp(log_variance) - 1 - log_variance)).sum((0, 1, 2, 3))
            self._kl = kl if self._kl is None else self._kl + kl

    def statistics(self) -> dict:
        """The statistics: a dictionary of numbers and lists, ready for JSON, with these keys.

        samples: number of latents.
        mean, std: per channel, over samples, time and space. Diffusion models should learn (z - mean) / std.
        peak: per channel, the largest distance of a value from the mean, in standard deviations; 0 if dead.
        dead: indices of channels that carry nothing: their standard deviation is 0, or below DEAD times the
          median of all channels.
        exploding: indices of channels whose standard deviation exceeds EXPLODING times the median, or is not
          finite.
        spectrum: eigenvalues of the channel covariance, in descending order; NaN if the covariance is not
          finite.
        effective_rank: exp of the entropy of the normalized spectrum (Roy & Vetterli 2007), 1 to c: the
          effective number of independent channels. 0 if the spectrum is 0 or not finite.
        sec: for each rho in RHO, the share of energy at high spatial frequencies, which diffusion models
          learn last (SEC, arXiv 2606.03578). A coefficient (u, v) of the 2D cosine transform of a latent
          frame, h x w, has a high frequency if u + v > rho (h + w - 2); u and v start at 0. The share is
          relative to the variance of a channel, and averaged over the channels that are not dead. Compare it
          only at equal latent shapes.
        kl: per channel, the mean KL of the posterior from N(0, 1) in nats per latent value; absent without a
          posterior.

        Raises:
          ValueError: if nothing was added.
        """
        count = self._pixels.count
        if not count:
            raise ValueError("no latents were added")
        mean, covariance = self._pixels.mean, self._pixels.covariance
        variance = np.maximum(np.diag(covariance), 0)
        std = np.sqrt(variance)
        median = np.median(std[np.isfinite(std)]) if np.isfinite(std).any() else 0.0
        dead = dead_channels(std)
        farthest = np.maximum(self._highest - mean, mean - self._lowest)
        finite = np.isfinite(covariance).all()
        spectrum = (
            np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0) if finite else np.full_like(mean, np.nan)
        )
        with np.errstate(invalid="ignore", divide="ignore"):
            shares = self._high_frequencies / (count * variance)
            peak = np.where(dead, 0, farthest / std)
        alive = shares[:, ~dead]
        statistics = {
            "samples": self._samples,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "peak": peak.tolist(),
            "dead": np.flatnonzero(dead).tolist(),
            "exploding": np.flatnonzero(~(std <= EXPLODING * median) & ~dead).tolist(),
            "spectrum": spectrum.tolist(),
            "effective_rank": _effective_rank(spectrum),
            "sec": {
                f"{rho:g}": float(s.mean()) if s.size else 0.0 for rho, s in zip(RHO, alive, strict=True)
            },
        }
        if self._kl is not None:
            statistics["kl"] = (self._kl / count).tolist()
        return statistics


def dead_channels(std: np.ndarray) -> np.ndarray:
    """Marks channels that carry nothing, (c,): their standard deviation is 0, or below DEAD times the median.

    Args:
      std: standard deviation of each channel, (c,); those that are not finite do not count for the median.
    """
    finite = std[np.isfinite(std)]
    return (std == 0) | (std < DEAD * np.median(finite) if finite.size else False)


def encode(codec: Codec, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Encodes (B, T, H, W, 3) uint8 to latents (b, t, h, w, c) and their log-variance.

    If the codec has a posterior, the latents are its mean, and the log-variance has their shape. Otherwise
    the log-variance is None.
    """
    posterior = getattr(codec, "posterior", None)
    return posterior(frames) if posterior else (codec.encode(frames), None)


def measure(codec: Codec, batches: Iterable[np.ndarray]) -> dict:
    """Encodes batches (B, T, H, W, 3) uint8; returns `LatentMoments.statistics` of the latents."""
    moments = LatentMoments()
    for batch in batches:
        moments.add(*encode(codec, batch))
    return moments.statistics()


def pooled(statistics: Sequence[dict]) -> tuple[list[float], list[float]]:
    """The mean and standard deviation of each channel over several sets of latents of equal weight.

    Args:
      statistics: `LatentMoments.statistics` of each set. Each set has the latents of one bucket. With equal
        weights, the bucket with the largest clips does not dominate.
    """
    mean = np.mean([s["mean"] for s in statistics], axis=0)
    square = np.mean([np.square(s["mean"]) + np.square(s["std"]) for s in statistics], axis=0)
    return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def viv(latents: np.ndarray, labels: Sequence) -> float:
    """Velocity irreducible variance (VIV, arXiv 2606.03578): the flow-matching loss that no model can remove.

    The loss remains because the paths of different samples cross. Channels are first normalized over all
    latents. The VIV of one class is (π/2) Σ √λ, where λ are the eigenvalues of the covariance of the class's
    latents. The result is the mean over classes, weighted by their numbers of samples. The formula is exact
    for Gaussian latents: it is the integral over time of λ / ((1 - t)² + t² λ), summed over λ. Few samples
    per class span few directions, so compare VIV only at equal latent shapes and class sizes.

    Args:
      latents: (N, t, h, w, c).
      labels: N class labels of any type; classes of fewer than two samples are ignored.

    Returns:
      A number of at least 0, lower for latents that are easier to generate; NaN if no class has two samples.
    """
    z = np.asarray(latents, np.float64)
    axes = tuple(range(z.ndim - 1))
    std = z.std(axes)
    z = ((z - z.mean(axes)) / np.where(std > 0, std, 1)).reshape(len(z), -1)
    classes = np.asarray(labels)
    total = count = 0.0
    for label in np.unique(classes):
        members = z[classes == label]
        if len(members) > 1:
            # √λ are the singular values of the centered samples divided by √(n - 1).
            roots = np.linalg.svd(members - members.mean(0), compute_uv=False) / math.sqrt(len(members) - 1)
            total += len(members) * math.pi / 2 * roots.sum()
            count += len(members)
    return float(total / count) if count else math.nan


def equivariance(
    decode: Callable[[np.ndarray], np.ndarray], latents: np.ndarray, frames: np.ndarray
) -> dict[str, np.ndarray]:
    """The error of decoding a transformed latent, compared with the equally transformed clip.

    Args:
      decode: maps latents (b, t, h', w', c) to frames (B, T, H', W', 3) in [-1, 1].
      latents: (b, t, h, w, c).
      frames: (B, T, H, W, 3) in [-1, 1], the clips that were encoded.

    Returns:
      The mean absolute error in 8-bit levels, (B,), for each transformation. 'equivariance_scale' halves
      height and width (antialiased linear, like the loss term 'equivariance'); it is absent for latents of
      one row or column. 'equivariance_rotation' rotates by 90 degrees.
    """
    z, x = jnp.asarray(latents), jnp.asarray(frames)
    factor = x.shape[2] // z.shape[2]
    pairs = {"rotation": (jnp.rot90(z, axes=(2, 3)), jnp.rot90(x, axes=(2, 3)))}
    if min(z.shape[2:4]) > 1:
        h, w = (round(0.5 * size) for size in z.shape[2:4])
        pairs["scale"] = _resized(z, h, w), _resized(x, factor * h, factor * w)
    return {
        f"equivariance_{name}": np.asarray(_distance(jnp.asarray(decode(np.asarray(turned))), expected))
        for name, (turned, expected) in pairs.items()
    }


def _effective_rank(spectrum: np.ndarray) -> float:
    total = spectrum.sum()
    if not total > 0 or not np.isfinite(total):
        return 0.0
    shares = spectrum[spectrum > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _high_frequency_energy(z: np.ndarray) -> np.ndarray:
    """Energy of the orthonormal 2D cosine transform of latents (b, t, h, w, c) above each cutoff in RHO.

    It is summed over b and t; the result is (cutoffs, c).
    """
    h, w = z.shape[2:4]
    spectrum = np.einsum("uh,bthwc->btuwc", _cosines(h), z, optimize=True)
    spectrum = np.einsum("vw,btuwc->btuvc", _cosines(w), spectrum, optimize=True)
    energy = np.square(spectrum).sum((0, 1))
    frequency = np.add.outer(np.arange(h), np.arange(w))
    return np.stack([energy[frequency > rho * (h + w - 2)].sum(0) for rho in RHO])


def _cosines(n: int) -> np.ndarray:
    """The orthonormal cosine transform (DCT-II) of n numbers as an n x n matrix, one row per frequency."""
    matrix = np.cos(np.pi / n * np.outer(np.arange(n), np.arange(n) + 0.5)) * math.sqrt(2 / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def _resized(x: jax.Array, height: int, width: int) -> jax.Array:
    return jax.image.resize(x, (*x.shape[:2], height, width, x.shape[-1]), "linear")


@jax.jit
def _distance(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.abs(x - y).mean((-2, -1)).mean((-2, -1)) / LEVEL
