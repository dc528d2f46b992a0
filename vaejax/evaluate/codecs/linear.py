"""The best linear codec of the same latent size: the score that a trained codec has to beat.

A latent vector stands for a block of pixels: temporal x spatial x spatial of them, or 1 x spatial x spatial
in the first frame of a clip. The linear codec with the least squared error for as many numbers a block is
the principal components of the blocks (Eckart and Young 1936), here fitted apart for first frames and for
the groups of frames that follow.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from vaejax.evaluate import metrics


@dataclasses.dataclass(frozen=True)
class _Components:
    """Principal components of blocks of `dims` numbers."""

    mean: np.ndarray  # (dims,)
    basis: np.ndarray  # (dims, components), orthonormal columns

    def coordinates(self, blocks: np.ndarray) -> np.ndarray:
        """Blocks (n, dims) along the components, (n, components)."""
        return (blocks - self.mean) @ self.basis

    def blocks(self, coordinates: np.ndarray) -> np.ndarray:
        """The nearest blocks (n, dims) that the components can express."""
        return coordinates @ self.basis.T + self.mean


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
        return np.concatenate([self.decode(self.encode(sample[None])) for sample in frames])

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Maps (N, T, H, W, 3) uint8 to latents (n, t, h, w, c) float64; 0 where there are fewer components.

        Raises:
          ValueError: as `reconstruct`.
        """
        h, w = (size // self.spatial for size in frames.shape[2:4])
        groups = _groups(frames[0], self.spatial, self.temporal)
        latents = np.zeros((len(frames), len(groups), h, w, self.channels))
        for sample, latent in zip(frames, latents, strict=True):
            for (start, stop), grid in zip(groups, latent, strict=True):
                blocks = _to_blocks(_normalise(sample[start:stop]), self.spatial)
                coordinates = self._components(start).coordinates(blocks)
                grid[..., : coordinates.shape[1]] = coordinates.reshape(h, w, -1)
        return latents

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Maps latents (n, t, h, w, c) to (N, T, H, W, 3) float32, clipped to [-1, 1] and not rounded."""
        n, t, h, w, _ = latents.shape
        size = h * self.spatial, w * self.spatial, 3
        out = np.empty((n, 1 + (t - 1) * self.temporal, *size), np.float32)
        groups = _groups(out[0], self.spatial, self.temporal)
        for latent, decoded in zip(latents, out, strict=True):
            for (start, stop), grid in zip(groups, latent, strict=True):
                components = self._components(start)
                coordinates = np.float64(grid[..., : components.basis.shape[1]]).reshape(h * w, -1)
                decoded[start:stop] = _from_blocks(
                    components.blocks(coordinates), (stop - start, *size), self.spatial
                )
        return out.clip(-1, 1)

    def _components(self, start: int) -> _Components:
        """Of the group of frames that begins at frame `start`."""
        components = self.rest if start else self.first
        if components is None:
            raise ValueError("this linear codec was fitted on images and cannot code a video")
        return components


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


def _groups(sample: np.ndarray, spatial: int, temporal: int) -> list[tuple[int, int]]:
    """The spans of frames that one latent frame stands for: the first frame, then `temporal` at a time."""
    length, height, width, _ = sample.shape
    if (length - 1) % temporal or height % spatial or width % spatial:
        raise ValueError(
            f"a clip of {length}x{height}x{width} (T, H, W); expected T = 1 + a multiple of {temporal}, "
            f"H and W multiples of {spatial}"
        )
    return [(0, 1), *((start, start + temporal) for start in range(1, length, temporal))]


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
