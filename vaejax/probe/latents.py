"""The latents that the probe learns: encoded once and normalized per channel."""

import dataclasses
from collections.abc import Iterator

import numpy as np

CHUNK = 1024  # samples normalized at a time


@dataclasses.dataclass(frozen=True)
class Latents:
    """Normalized latents of training and held-out samples.

    Attributes:
      train: (n, t, h, w, c) float32; each channel has mean 0 and variance 1, or variance 0 if it is constant.
      held_out: (m, t, h, w, c) float32, normalized by the statistics of `train`.
      mean: mean of the training latents before normalization, (c,).
      std: standard deviation of the training latents before normalization, (c,); 1 for a constant channel, to
        avoid a division by 0.
      labels: classes of the training samples, (n,) int32.
      held_out_labels: classes of the held-out samples, (m,) int32.
    """

    train: np.ndarray
    held_out: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    labels: np.ndarray
    held_out_labels: np.ndarray

    @classmethod
    def normalized(
        cls, train: np.ndarray, held_out: np.ndarray, labels: np.ndarray, held_out_labels: np.ndarray
    ) -> "Latents":
        """Normalizes the latents of a codec, (n, t, h, w, c) and (m, t, h, w, c)."""
        axes = tuple(range(train.ndim - 1))
        mean = train.mean(axes, dtype=np.float64)
        square = sum(np.square(chunk - mean).sum(axes) for chunk in _chunks(train))
        std = np.sqrt(square / (train.size // train.shape[-1]))
        std = np.where(std > 0, std, 1.0)
        train, held_out = (
            np.concatenate([((chunk - mean) / std).astype(np.float32) for chunk in _chunks(z)])
            for z in (train, held_out)
        )
        return cls(train, held_out, mean, std, labels, held_out_labels)

    def denormalize(self, z: np.ndarray) -> np.ndarray:
        """Maps normalized latents (..., c) to the codec's own scale, float32."""
        return (z * self.std + self.mean).astype(np.float32)


def _chunks(z: np.ndarray) -> Iterator[np.ndarray]:
    """Slices of at most CHUNK samples, because a float64 copy of all samples might not fit in memory."""
    return (z[start : start + CHUNK] for start in range(0, len(z), CHUNK))
