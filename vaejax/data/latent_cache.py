"""Training samples with latents that vaejax.codec encode wrote, so that a frozen encoder need not run.

A latent file holds the latents of a whole photo or clip at its own size and frame rate. Samples are therefore
cut without resampling: at positions on the latent grid, and from the start of a clip, because only its first
latent frame stands for a single frame.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from vaejax.config.folders import folder_list
from vaejax.data import media
from vaejax.data.bucket import Bucket
from vaejax.data.crop import Crop, Unreadable
from vaejax.errors import InputError, one_line

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig
    from vaejax.data.table import Record

EXTENSION = ".latent"  # of the files of vaejax.codec


@dataclass(frozen=True)
class LatentCache:
    """The latents of media folders.

    Attributes:
      folders: pairs of a folder of media and the folder of its latents.
      model: fingerprint of the model whose encoder is frozen.
      spatial_factor: pixels per latent pixel.
      temporal_factor: frames per latent frame.
    """

    folders: tuple[tuple[str, str], ...]
    model: str
    spatial_factor: int
    temporal_factor: int

    @classmethod
    def of(cls, data: "DataConfig", model: str, spatial_factor: int, temporal_factor: int) -> "LatentCache":
        """Pairs the folders data.media and data.latents.

        Raises:
          InputError: if their numbers differ, or a folder of latents is missing.
        """
        of_media, of_latents = folder_list(data.media), folder_list(data.latents)
        if len(of_media) != len(of_latents):
            raise InputError(
                f"data.latents = {data.latents!r}; accepted: one folder of latents for each of the"
                f" {len(of_media)} folders of data.media"
            )
        for folder in of_latents:
            if not os.path.isdir(folder):
                raise InputError(f"data.latents = {folder}: no such folder; accepted: OUT of vaejax encode")
        return cls(tuple(zip(of_media, of_latents, strict=True)), model, spatial_factor, temporal_factor)

    def path(self, source: str) -> str:
        """The latent file of a photo or clip; '' for a file outside the folders."""
        for folder, latents in self.folders:
            if source.startswith(os.path.join(folder, "")):
                return os.path.join(latents, os.path.relpath(source, folder) + EXTENSION)
        return ""

    def fits(self, columns: Mapping[str, np.ndarray], paths: Sequence[str], bucket: Bucket) -> np.ndarray:
        """Whether rows of a source's table have latents, and at least the bucket's frames, height and width.

        Args:
          columns: columns of the table, each (n,).
          paths: paths of the rows.
          bucket: shape of a sample.
        """
        fits = (columns["height"] >= bucket.height) & (columns["width"] >= bucket.width)
        seconds = columns["stop"] - columns["start"]
        # The span of a clip that is also held out ends before the clip; 1e-3 allows for rounded timestamps.
        fits &= (bucket.frames == 1) | (seconds * columns["fps"] >= bucket.frames - 1 - 1e-3)
        fits &= columns["start"] == 0
        for row in np.flatnonzero(fits).tolist():
            fits[row] = os.path.exists(self.path(paths[row]))
        return fits

    def read(
        self, file: str, record: "Record", bucket: Bucket, offset: tuple[float, float]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reads a sample and its latents.

        Args:
          file: path of the photo or clip.
          record: its row in the table of the source.
          bucket: shape of the sample.
          offset: position (y, x) of the crop in the picture, each in [0, 1]; moved to the latent grid.

        Returns:
          Frames (T, H, W, C) uint8, and latents (t, h, w, c) float32, not normalized.

        Raises:
          Unreadable: if the file or its latents cannot be read, or the latents are those of another model or
            of another version of the file.
        """
        y, at_y = self._on_grid(offset[0], record.height - bucket.height)
        x, at_x = self._on_grid(offset[1], record.width - bucket.width)
        # The zoom is limited by max_upscale = 1, so the crop has the file's own resolution.
        size = bucket.height, bucket.width
        crop = Crop(*size, zoom=np.inf, offset=(at_y, at_x), channels=bucket.channels)
        frames = media.read(file, record.kind, frames=bucket.frames, fps=None, start=0.0, **crop._asdict())
        return frames, self._latents(self.path(file), record, bucket, (y, x))

    def _on_grid(self, at: float, free: int) -> tuple[int, float]:
        """The latent pixel at which a crop begins, and the crop's offset, given `free` pixels of room."""
        steps = free // self.spatial_factor + 1
        step = min(int(at * steps), steps - 1)
        return step, step * self.spatial_factor / free if free else 0.0

    def _latents(self, path: str, record: "Record", bucket: Bucket, corner: tuple[int, int]) -> np.ndarray:
        try:
            with safe_open(path, "numpy") as opened:
                header: dict[str, Any] = opened.metadata() or {}
                if header.get("model") != self.model:
                    raise Unreadable(f"{path}: latents of model {header.get('model')}, not {self.model}")
                if (int(header["height"]), int(header["width"])) != (record.height, record.width):
                    raise Unreadable(
                        f"{path}: made from {header['height']}x{header['width']} pixels (HxW), but the file"
                        f" has {record.height}x{record.width}; encode it again"
                    )
                t, h, w = (
                    1 + (bucket.frames - 1) // self.temporal_factor,
                    bucket.height // self.spatial_factor,
                    bucket.width // self.spatial_factor,
                )
                (y, x), part = corner, opened.get_slice("latent")
                z = np.asarray(part[:t, y : y + h, x : x + w], np.float32)
                mean, std = (np.asarray(_numbers(header[name]), np.float32) for name in ("mean", "std"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise Unreadable(f"{path}: no usable latents ({one_line(error)})") from error
        if z.shape[:3] != (t, h, w):
            raise Unreadable(f"{path}: latents of shape {z.shape[:3]}; needed: {(t, h, w)}")
        return z * std + mean


def _numbers(text: str) -> list[float]:
    """The numbers of a JSON list."""
    return [float(part) for part in text.strip("[] ").split(",")]
