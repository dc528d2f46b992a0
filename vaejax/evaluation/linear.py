"""The best linear codec of the same latent size: the score that a trained codec has to beat.

A latent vector stands for a block of pixels: temporal x spatial x spatial of them, or 1 x spatial x spatial
in the first frame of a clip. The linear codec with the least squared error for as many numbers a block is
the principal components of the blocks (Eckart and Young 1936), here fitted apart for first frames and for
the groups of frames that follow.
"""

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np

from vaejax.evaluation import metrics


@dataclasses.dataclass(frozen=True)
class _Components:
    """Principal components of blocks of `dims` numbers."""

    mean: np.ndarray  # (dims,)
    basis: np.ndarray  # (dims, components), orthonormal columns

    def project(self, blocks: np.ndarray) -> np.ndarray:
        """The nearest blocks (n, dims) that the components can express."""
        return (blocks - self.mean) @ self.basis @ self.basis.T + self.mean


@dataclasses.dataclass(frozen=True)
class LinearCodec:
    """Principal components over compression blocks; made by `fit`."""

    channels: int
    spatial: int
    temporal: int
    first: _Components
    rest: _Components | None  # None when it was fitted on images alone

    @classmethod
    def fit(
        cls, frames: np.ndarray | Iterable[np.ndarray], channels: int, spatial: int, temporal: int
    ) -> "LinearCodec":
        """Fits the components; memory does not grow with the number of samples.

        Args:
          frames: training samples (N, T, H, W, 3) uint8, T = 1 + k·temporal, or an iterable of such arrays,
            whose shapes may differ.
          channels: latent channels, the number of components.
          spatial: spatial compression factor; divides H and W.
          temporal: temporal compression factor.

        Raises:
          ValueError: if frames are not uint8, a size is not a multiple of its factor, or there are none.
        """
        first, rest = _Moments(), _Moments()
        for batch in [frames] if isinstance(frames, np.ndarray) else frames:
            for sample in batch:
                for start, stop in _groups(sample, spatial, temporal):
                    blocks = _to_blocks(_normalise(sample[start:stop]), spatial)
                    (rest if start else first).add(blocks)
        if not first.count:
            raise ValueError("a linear codec cannot be fitted: there are no samples")
        return cls(
            channels,
            spatial,
            temporal,
            first.components(channels),
            rest.components(channels) if rest.count else None,
        )

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Encodes and decodes.

        Args:
          frames: (N, T, H, W, 3) uint8.

        Returns:
          (N, T, H, W, 3) float32, clipped to [-1, 1] and not rounded.

        Raises:
          ValueError: as `fit`, and for videos when the codec was fitted on images alone.
        """
        out = np.empty(frames.shape, np.float32)
        for sample, decoded in zip(frames, out, strict=True):
            for start, stop in _groups(sample, self.spatial, self.temporal):
                components = self.rest if start else self.first
                if components is None:
                    raise ValueError("this linear codec was fitted on images and cannot code a video")
                blocks = components.project(_to_blocks(_normalise(sample[start:stop]), self.spatial))
                decoded[start:stop] = _from_blocks(blocks, decoded[start:stop].shape, self.spatial)
        return out.clip(-1, 1)


def psnr_linear(codec: LinearCodec, frames: np.ndarray) -> float:
    """The mean PSNR in dB of the frames of held-out samples (N, T, H, W, 3) uint8, as `metrics.psnr` has it.

    Frames rebuilt exactly count as `metrics.PSNR_CEILING`.
    """
    scores = [
        metrics.psnr(_normalise(sample[None]).astype(np.float32), codec.reconstruct(sample[None]))
        for sample in frames
    ]
    return float(np.minimum(np.concatenate(scores), metrics.PSNR_CEILING).mean())


class _Moments:
    """Sums from which mean and covariance follow, in float64."""

    def __init__(self):
        self.count, self.total, self.products = 0, 0.0, 0.0

    def add(self, blocks: np.ndarray) -> None:
        self.count += len(blocks)
        self.total = self.total + blocks.sum(0)
        self.products = self.products + blocks.T @ blocks

    def components(self, number: int) -> _Components:
        """The first components; all there are, when the blocks have no more numbers than that."""
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        _, vectors = np.linalg.eigh(covariance)  # by rising variance
        return _Components(mean, vectors[:, ::-1][:, :number])


def _normalise(frames: np.ndarray) -> np.ndarray:
    """Uint8 to float64 in [-1, 1]."""
    if frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype}; expected uint8")
    return frames / 127.5 - 1


def _groups(sample: np.ndarray, spatial: int, temporal: int) -> Iterator[tuple[int, int]]:
    """The spans of frames that one latent frame stands for: the first frame, then `temporal` at a time."""
    length, height, width, _ = sample.shape
    if (length - 1) % temporal or height % spatial or width % spatial:
        raise ValueError(
            f"a clip of {length}x{height}x{width} (T, H, W); expected T = 1 + a multiple of {temporal}, "
            f"H and W multiples of {spatial}"
        )
    yield 0, 1
    for start in range(1, length, temporal):
        yield start, start + temporal


def _to_blocks(frames: np.ndarray, s: int) -> np.ndarray:
    """(t, H, W, C) to blocks (H/s · W/s, t·s·s·C)."""
    t, height, width, c = frames.shape
    blocks = frames.reshape(t, height // s, s, width // s, s, c).transpose(1, 3, 0, 2, 4, 5)
    return blocks.reshape(-1, t * s * s * c)


def _from_blocks(blocks: np.ndarray, shape: tuple[int, int, int, int], s: int) -> np.ndarray:
    """The inverse of `_to_blocks`; shape is (t, H, W, C)."""
    t, height, width, c = shape
    blocks = blocks.reshape(height // s, width // s, t, s, s, c)
    return blocks.transpose(2, 0, 3, 1, 4, 5).reshape(shape)
