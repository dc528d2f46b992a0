"""The latents that the probe learns from, encoded once and normalised channel by channel."""

import dataclasses
from collections.abc import Iterator

import numpy as np

PART = 1024  # samples


@dataclasses.dataclass(frozen=True)
class Latents:
    """Normalised latents of training and held-out samples.

    Attributes:
      train: (n, t, h, w, c) float32, every channel of mean 0 and variance 1.
      held_out: (m, t, h, w, c), normalised by the statistics of `train`.
      mean: (c,) of the training latents as the codec gave them.
      std: (c,) likewise; 1 for a channel that is constant.
      labels: classes of the training samples, (n,) int32.
      held_out_labels: (m,).
    """

    train: np.ndarray
    held_out: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    labels: np.ndarray
    held_out_labels: np.ndarray

    @classmethod
    def normalised(
        cls, train: np.ndarray, held_out: np.ndarray, labels: np.ndarray, held_out_labels: np.ndarray
    ) -> "Latents":
        """Normalises latents as a codec gave them, (n, t, h, w, c) and (m, t, h, w, c)."""
        axes = tuple(range(train.ndim - 1))
        mean = train.mean(axes, dtype=np.float64)
        square = sum(np.square(part - mean).sum(axes) for part in _parts(train))
        std = np.sqrt(square / (train.size // train.shape[-1]))
        std = np.where(std > 0, std, 1.0)
        train, held_out = (
            np.concatenate([((part - mean) / std).astype(np.float32) for part in _parts(z)])
            for z in (train, held_out)
        )
        return cls(train, held_out, mean, std, labels, held_out_labels)

    def restore(self, z: np.ndarray) -> np.ndarray:
        """Normalised latents (..., c) in the codec's own units, float32."""
        return (z * self.std + self.mean).astype(np.float32)


def _parts(z: np.ndarray) -> Iterator[np.ndarray]:
    """Some samples at a time, of which float64 copies fit when those of all might not."""
    return (z[start : start + PART] for start in range(0, len(z), PART))
