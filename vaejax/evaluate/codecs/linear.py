"""The best linear codec of a given latent size; a trained codec should beat its PSNR.

A latent vector encodes a block of temporal x spatial x spatial pixels, or of 1 x spatial x spatial pixels in
the first frame of a clip. For a given number of values per block, projection onto the principal components
of the blocks has the least squared error (Eckart and Young 1936). The components of first frames and of
later groups of frames are fitted separately.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from vaejax.evaluate import metrics
from vaejax.models.latent_shape import decoded_frames, latent_side


@dataclasses.dataclass(frozen=True)
class _Components:
    """Principal components of blocks of `dims` values."""

    mean: np.ndarray  # (dims,)
    basis: np.ndarray  # (dims, components), orthonormal columns

    def coordinates(self, blocks: np.ndarray) -> np.ndarray:
        """Coordinates (n, components) of blocks (n, dims)."""
        return (blocks - self.mean) @ self.basis

    def blocks(self, coordinates: np.ndarray) -> np.ndarray:
        """The blocks (n, dims) with these coordinates (n, components)."""
        return coordinates @ self.basis.T + self.mean


@dataclasses.dataclass(frozen=True)
class LinearCodec:
    """A linear codec of principal components; created by `fit`."""

    channels: int
    spatial: int
    temporal: int
    first: _Components  # for blocks of the first frame
    rest: _Components | None  # for blocks of later groups of frames; None if fitted on images only

    @property
    def pixel_channels(self) -> int:
        """The number of pixel channels C of the frames."""
        return len(self.first.mean) // self.spatial**2

    @classmethod
    def fit(
        cls, frames: np.ndarray | Iterable[np.ndarray], channels: int, spatial: int, temporal: int
    ) -> "LinearCodec":
        """Fits the components, in memory that does not grow with the number of samples.

        Args:
          frames: training samples (N, T, H, W, C) uint8, T = 1 + k·temporal, or an iterable of such arrays,
            whose shapes may differ.
          channels: number of latent channels and components.
          spatial: spatial compression factor, which divides H and W.
          temporal: temporal compression factor.

        Raises:
          ValueError: if frames are not uint8, `spatial` does not divide H and W, `temporal` does not divide
            T - 1, or there are no samples.
        """
        first, rest = _Moments(), _Moments()
        for batch in [frames] if isinstance(frames, np.ndarray) else frames:
            for sample in batch:
                for start, stop in _groups(sample, spatial, temporal):
                    blocks = _to_blocks(_from_uint8(sample[start:stop]), spatial)
                    (rest if start else first).add(blocks)
        if not first.count:
            raise ValueError("there are no samples")
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
          frames: (N, T, H, W, C) uint8.

        Returns:
          (N, T, H, W, C) float32, clipped to [-1, 1] and not rounded.

        Raises:
          ValueError: for frames that `fit` rejects, and for videos if the codec was fitted on images only.
        """
        return np.concatenate([self.decode(self.encode(sample[None])) for sample in frames])

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """Encodes (N, T, H, W, C) uint8 to latents (N, t, h, w, c) float64.

        If there are fewer components than channels, the last channels are 0.

        Raises:
          ValueError: see `reconstruct`.
        """
        h, w = (latent_side(size, self.spatial) for size in frames.shape[2:4])
        groups = _groups(frames[0], self.spatial, self.temporal)
        latents = np.zeros((len(frames), len(groups), h, w, self.channels))
        for sample, latent in zip(frames, latents, strict=True):
            for (start, stop), grid in zip(groups, latent, strict=True):
                blocks = _to_blocks(_from_uint8(sample[start:stop]), self.spatial)
                coordinates = self._components(start).coordinates(blocks)
                grid[..., : coordinates.shape[1]] = coordinates.reshape(h, w, -1)
        return latents

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents (n, t, h, w, c) to (N, T, H, W, C) float32, clipped to [-1, 1] and not rounded."""
        n, t, h, w, _ = latents.shape
        size = h * self.spatial, w * self.spatial, self.pixel_channels
        out = np.empty((n, decoded_frames(t, self.temporal), *size), np.float32)
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
        """The components of the group of frames that begins at frame `start`."""
        components = self.rest if start else self.first
        if components is None:
            raise ValueError("a linear codec fitted on images only cannot encode a video")
        return components


def psnr_linear(codec: LinearCodec, frames: np.ndarray) -> float:
    """Mean PSNR of the frames of samples (N, T, H, W, C) uint8, in dB; exact frames count as PSNR_CEILING."""
    scores = []
    for sample in frames:
        original: Any = _from_uint8(sample[None]).astype(np.float32)
        decoded: Any = codec.reconstruct(sample[None])
        scores.append(metrics.psnr(original, decoded))
    return float(np.minimum(np.concatenate(scores), metrics.PSNR_CEILING).mean())


class _Moments:
    """Sums over blocks, in float64, from which their mean and covariance are computed."""

    def __init__(self):
        self.count = 0
        self.total: Any = 0.0
        self.products: Any = 0.0

    def add(self, blocks: np.ndarray) -> None:
        self.count += len(blocks)
        self.total = self.total + blocks.sum(0)
        self.products = self.products + blocks.T @ blocks

    def components(self, number: int) -> _Components:
        """The first `number` principal components, or all if there are fewer."""
        mean = self.total / self.count
        covariance = self.products / self.count - np.outer(mean, mean)
        _, vectors = np.linalg.eigh(covariance)  # in ascending order of variance
        return _Components(mean, vectors[:, ::-1][:, :number])


def _from_uint8(frames: np.ndarray) -> np.ndarray:
    """uint8 pixels as float64 in [-1, 1]: the sums of products need the precision."""
    if frames.dtype != np.uint8:
        raise ValueError(f"frames are {frames.dtype}, not uint8")
    return frames / 127.5 - 1


def _groups(sample: np.ndarray, spatial: int, temporal: int) -> list[tuple[int, int]]:
    """The (start, stop) frames of each latent frame: the first frame, then `temporal` frames at a time."""
    length, height, width, _ = sample.shape
    if (length - 1) % temporal or height % spatial or width % spatial:
        raise ValueError(
            f"a clip is {length}x{height}x{width} (T, H, W), not T = 1 + a multiple of {temporal}, "
            f"H and W multiples of {spatial}"
        )
    return [(0, 1), *((start, start + temporal) for start in range(1, length, temporal))]


def _to_blocks(frames: np.ndarray, s: int) -> np.ndarray:
    """Cuts (t, H, W, C) into blocks (H/s · W/s, t·s·s·C)."""
    t, height, width, c = frames.shape
    blocks = frames.reshape(t, height // s, s, width // s, s, c).transpose(1, 3, 0, 2, 4, 5)
    return blocks.reshape(-1, t * s * s * c)


def _from_blocks(blocks: np.ndarray, shape: tuple[int, int, int, int], s: int) -> np.ndarray:
    """Inverse of `_to_blocks`; shape is (t, H, W, C)."""
    t, height, width, c = shape
    blocks = blocks.reshape(height // s, width // s, t, s, s, c)
    return blocks.transpose(2, 0, 3, 1, 4, 5).reshape(shape)
