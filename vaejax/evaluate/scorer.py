"""Scores of a codec on the samples of a bucket, accumulated batch by batch.

Scores and features of each sample are kept, but not its frames. Scores are computed per sample, so the batch
size does not change them. Distances between distributions compare the whole set.
"""

import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from vaejax.evaluate import distances, metrics
from vaejax.evaluate import latent_metrics as latents
from vaejax.evaluate.codecs.base import Codec
from vaejax.models.pixels import from_uint8
from vaejax.networks import lpips as perceptual
from vaejax.runtime import mesh as sharding

# Number of samples per bucket that are also decoded in chunks, in tiles and from transformed latents. It is
# small, because each of these variants costs as much as plain decoding.
EXTRA_SAMPLES = 16
TILE = 32  # latent pixels per side of a tile, if the frame is large enough
SEAM = 4  # pixels on each side of the overlap of two tiles that count as part of the seam
VIV_BYTES = 2**28  # at most this many bytes of latents with class labels are kept for `latent_metrics.viv`
# Name of a feature network -> names of the Fréchet and the kernel distance of its features.
DISTANCES = {
    "efficientnet": ("frechet_efficientnet", "kid_efficientnet"),
    "inception": ("rfid_inception", "kid_inception"),
    "i3d": ("rfvd_i3d", "kvd_i3d"),
}


class FrameScorer:
    """Compares reconstructed frames with their originals, on all devices of a mesh.

    Args:
      mesh: device mesh of one process; its size must divide the batch size.
      lpips_params: parameters of each LPIPS network, from `lpips.load`.
    """

    def __init__(self, mesh: Mesh, lpips_params: Mapping[str, dict]):
        self._mesh = mesh
        self._lpips = sharding.replicate(mesh, dict(lpips_params))

    def compare(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of frames y (B, T, H, W, C) in [-1, 1] against the originals x.

        Returns:
          Scores by name, see `metrics`: 'squared_error', 'psnr', `metrics.psnr_of_parts`, 'ssim' and 'spots'
          of each frame, (B, T); 'lpips_NETWORK' of each frame, (B, T), unless the frames are too small for
          LPIPS; and 'flicker' of each clip, (B,), absent for images.
        """
        originals, decoded = self._shared(x), self._shared(y)
        # One frame at a time: the LPIPS activations of a batch of clips would not fit into memory.
        with jax.default_matmul_precision("float32"):  # accelerators default to lower precision
            by_frame = [
                _frame_scores(self._lpips, originals[:, t : t + 1], decoded[:, t : t + 1])
                for t in range(x.shape[1])
            ]
        scores = {name: np.concatenate([one[name] for one in by_frame], axis=1) for name in by_frame[0]}
        if x.shape[1] > 1:
            scores["flicker"] = np.asarray(_flicker(originals, decoded))
        return scores

    def compare_parts(
        self, x: np.ndarray, whole: np.ndarray, parts: np.ndarray, at: np.ndarray, how: str
    ) -> dict[str, np.ndarray]:
        """Scores of frames that are decoded in chunks or tiles.

        Args:
          x: originals (B, T, H, W, C) in [-1, 1].
          whole: reconstructions like x, decoded at once.
          parts: reconstructions like x, decoded in parts from the same latents.
          at: booleans that broadcast to (T, H, W), true at the seams between the parts.
          how: 'chunked' or 'tiled'.

        Returns:
          'seam_HOW' and 'seam_HOW_elsewhere' (see `metrics.seam_error`), each (B,), and 'psnr_HOW', (B, T).
        """
        originals, at_once, in_parts = self._shared(x), self._shared(whole), self._shared(parts)
        seam, elsewhere = _seam_error(at_once, in_parts, at)
        scores = {
            f"seam_{how}": seam,
            f"seam_{how}_elsewhere": elsewhere,
            f"psnr_{how}": _psnr(originals, in_parts),
        }
        return {name: np.asarray(value) for name, value in scores.items()}

    def _shared(self, frames: np.ndarray) -> jax.Array:
        return sharding.shard_batch(self._mesh, np.asarray(frames, np.float32))


class _Coded(NamedTuple):
    """A batch that a codec encoded and decoded, padded to the batch size with copies.

    Attributes:
      frames: originals (B, T, H, W, C) uint8.
      latents: latents (b, t, h, w, c); None for a codec without latents.
      log_variance: log-variance of the posterior, shaped like the latents; None without a posterior.
      decoded: reconstructions (B, T, H, W, C) float32 in [-1, 1].
      bits: bits per pixel of each of the n samples that are not copies, (n,).
    """

    frames: np.ndarray
    latents: np.ndarray | None
    log_variance: np.ndarray | None
    decoded: np.ndarray
    bits: np.ndarray


class BucketScores:
    """The scores of one codec on one bucket.

    Args:
      codec: the codec.
      shape: (T, H, W) of the bucket.
      scorer: scorer of frames, shared by all codecs.
      batch: samples per call of a codec with latents. Smaller batches are padded, so the codec compiles once.
      features: network name -> function from frames (B, T, H, W, C) in [-1, 1] to features (B, d).

    Attributes:
      seconds: time spent on encoding and decoding.
      samples: number of samples so far.
      latent_shape: (t, h, w, c); None for a codec without latents.
    """

    def __init__(
        self,
        codec: Codec,
        shape: tuple[int, int, int],
        scorer: FrameScorer,
        batch: int,
        features: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    ):
        self.codec, self.seconds, self.samples = codec, 0.0, 0
        self.latent_shape = codec.latent_shape(*shape)
        self._scorer, self._batch, self._networks = scorer, batch, features
        self._values: dict[str, list[np.ndarray]] = {}
        self._features: dict[str, list[np.ndarray]] = {name: [] for name in features}
        self._moments = latents.LatentMoments()
        self._labeled: list[tuple[np.ndarray, str]] = []

    def add(self, frames: np.ndarray, labels: Sequence[str | None]) -> None:
        """Encodes, decodes and scores a batch.

        Args:
          frames: (B, T, H, W, C) uint8, B at most the batch size.
          labels: class of each sample, or None.
        """
        count = len(frames)
        started = time.monotonic()
        coded = self._code(frames)
        self.seconds += time.monotonic() - started
        x, z, y = from_uint8(coded.frames), coded.latents, coded.decoded
        scores = self._scorer.compare(x, y) | {"bits_per_pixel": coded.bits}
        if z is not None:
            log_variance = None if coded.log_variance is None else coded.log_variance[:count]
            self._keep_latents(z[:count], log_variance, labels)
            extra = min(count, EXTRA_SAMPLES - self.samples)
            if extra > 0:
                scores |= {name: value[:extra] for name, value in self._extra_scores(z, x, y).items()}
        for name, value in scores.items():
            self._values.setdefault(name, []).append(value[:count])
        for name, network in self._networks.items():
            self._features[name].append(network(y[:count]))
        self.samples += count

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Encodes and decodes frames (B, T, H, W, C) uint8 to float32 in [-1, 1], without scoring them."""
        return self._code(frames).decoded[: len(frames)]

    def psnr(self) -> np.ndarray:
        """The PSNR of each sample in dB, averaged over its frames, (N,)."""
        return _mean_psnr(np.concatenate(self._values["psnr"]))

    def results(self, originals: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
        """All scores, as results.json stores them.

        Args:
          originals: network name -> features (N, d) of the original frames.
          seed: seed of the bootstrap.

        Returns:
          A dictionary with
          'scores': {NAME: {'value', 'low', 'high', 'samples'}}, where 'low' and 'high' are the limits of a
            95% bootstrap interval over samples;
          'samples': number of samples;
          'psnr_by_frame': PSNR of frame 0, 1 and so on, averaged over samples, in dB, (T,);
          'latent_shape': (t, h, w, c), and 'latents': `LatentMoments.statistics`, both only for codecs with
            latents. If samples have classes, 'latents' also has 'viv', 'viv_samples' and 'viv_classes'.
        """
        scores = self._mean_scores(seed)
        for network, parts in self._features.items():
            scores |= self._distances(network, originals[network], np.concatenate(parts), seed)
        by_frame = np.concatenate(self._values["psnr"])
        results: dict[str, Any] = {"scores": scores, "samples": self.samples}
        results["psnr_by_frame"] = [float(_mean_psnr(frame[None])[0]) for frame in by_frame.T]
        if self.latent_shape:
            results["latent_shape"] = list(self.latent_shape)
            results["latents"] = self._moments.statistics()
            if self._labeled:
                kept, labels = zip(*self._labeled, strict=True)
                results["latents"] |= {
                    "viv": latents.viv(np.stack(kept), labels),
                    "viv_samples": len(labels),
                    "viv_classes": len(set(labels)),
                }
        return results

    def _mean_scores(self, seed: int) -> dict[str, dict[str, float]]:
        values = {name: np.concatenate(parts) for name, parts in self._values.items()}
        errors = values.pop("squared_error").astype(np.float64)
        scores = {}
        for name, value in values.items():
            if name.startswith("psnr"):
                value = _mean_psnr(value)
            elif value.ndim > 1:
                value = value.astype(np.float64).mean(1)
            if not np.isnan(value).all():  # NaN: the frames are too small for the score
                scores[name] = _mean_with_interval(value, seed)
        by_sample = errors.mean(1, keepdims=True)
        scores["psnr_pooled"] = _distance_with_interval(
            lambda x, _: metrics.psnr_pooled(x), by_sample, by_sample, seed
        )
        return scores

    def _distances(
        self, network: str, x: np.ndarray, y: np.ndarray, seed: int
    ) -> dict[str, dict[str, float]]:
        """Distances between features (N, d) of originals x and reconstructions y.

        They are NaN if a feature of a reconstruction is not finite. Otherwise the result is {} for a single
        sample, which has no covariance.
        """
        frechet, kernel = DISTANCES[network]
        broken = int((~np.isfinite(y).all(1)).sum())
        if broken:
            print(
                f"{self.codec.name}: features of {broken} of {len(y)} reconstructions are not finite; the"
                " codec's distances are NaN",
                file=sys.stderr,
            )
            unknown = dict.fromkeys(("value", "low", "high"), math.nan) | {"samples": len(y)}
            return dict.fromkeys((frechet, kernel), unknown)
        if len(x) < 2:
            return {}
        paired = functools.partial(distances.kernel_distance, paired=True)
        return {
            frechet: _distance_with_interval(distances.frechet_distance, x, y, seed),
            kernel: _distance_with_interval(paired, x, y, seed),
        }

    def _code(self, frames: np.ndarray) -> _Coded:
        count = len(frames)
        repeats = np.arange(self._batch) % count
        padded = frames[repeats]
        if not self.latent_shape:  # files are coded one by one; there is nothing to compile
            files = [self.codec.encode(frames[i : i + 1]) for i in range(count)]
            decoded = np.concatenate([self.codec.decode(file) for file in files])[repeats]
            bits = np.array([self.codec.bits(file) for file in files])
            return _Coded(padded, None, None, decoded, bits)
        z, log_variance = latents.encode(self.codec, padded)
        bits = np.full(count, self.codec.bits(z))
        return _Coded(padded, z, log_variance, self.codec.decode(z), bits)

    def _keep_latents(
        self, z: np.ndarray, log_variance: np.ndarray | None, labels: Sequence[str | None]
    ) -> None:
        self._moments.add(z, log_variance)
        room = max(0, VIV_BYTES // z[0].nbytes - len(self._labeled))
        labeled = [(one, label) for one, label in zip(z, labels, strict=True) if label is not None]
        self._labeled += labeled[:room]

    def _extra_scores(self, z: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """Scores of transformed latents, and of decoding in chunks and tiles if the codec supports it."""
        scores = latents.equivariance(self.codec.decode, z, x)
        t, h, w = z.shape[1:4]
        chunk, (tile, overlap) = chunk_size(t), tile_size(h, w)
        decode_chunked = getattr(self.codec, "decode_chunked", None)
        if chunk and decode_chunked:
            at = chunk_seams(t, chunk, self.codec.temporal_factor)
            scores |= self._scorer.compare_parts(x, y, decode_chunked(z, chunk), at, "chunked")
        decode_tiled = getattr(self.codec, "decode_tiled", None)
        if tile and decode_tiled:
            at = tile_seams(h, w, tile, overlap, self.codec)
            scores |= self._scorer.compare_parts(x, y, decode_tiled(z, tile, overlap), at, "tiled")
        return scores


def chunk_size(t: int) -> int:
    """Latent frames per chunk if t latent frames are cut into two or three chunks; 0 for an image."""
    return t // 2


def tile_size(h: int, w: int) -> tuple[int, int]:
    """Side and overlap of a tile in latent pixels; (0, 0) if the frame is too small for tiles."""
    tile = min(TILE, 5 * max(h, w) // 8) // 4 * 4
    return tile, tile // 4


def chunk_seams(t: int, chunk: int, temporal_factor: int) -> np.ndarray:
    """A mask of the frames on both sides of each chunk boundary, (T, 1, 1) booleans.

    The t latent frames are decoded `chunk` at a time. Latent frame 0 encodes one frame, and every other
    latent frame encodes `temporal_factor` frames.
    """
    at = np.zeros(1 + (t - 1) * temporal_factor, bool)
    for first in range(chunk, t, chunk):
        frame = 1 + (first - 1) * temporal_factor
        at[frame - 1 : frame + 1] = True
    return at[:, None, None]


def tile_seams(h: int, w: int, tile: int, overlap: int, codec: Any) -> np.ndarray:
    """A mask of the overlaps of tiles and of SEAM pixels on both sides of each, (1, H, W) booleans.

    Args:
      h: latent height.
      w: latent width.
      tile: latent pixels per side of a tile.
      overlap: latent pixels that neighboring tiles share.
      codec: a codec with `tile_spans`.
    """
    s = codec.spatial_factor

    def along(size: int) -> np.ndarray:
        spans = codec.tile_spans(size, tile, overlap)
        at = np.zeros(size * s, bool)
        for (_, stop), (start, _) in itertools.pairwise(spans):
            at[start * s - SEAM : stop * s + SEAM] = True
        return at

    return (along(h)[:, None] | along(w))[None]


def _mean_with_interval(values: np.ndarray, seed: int) -> dict[str, float]:
    value = float(np.mean(values, dtype=np.float64))
    low, high = distances.mean_interval(values, seed) if np.isfinite(value) else (value, value)
    return {"value": value, "low": float(low), "high": float(high), "samples": len(values)}


def _distance_with_interval(distance: Callable, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    value, low, high = float(distance(x, y)), np.nan, np.nan
    if not np.isfinite(value):
        low = high = value
    elif len(x) > 1:
        low, high = distances.interval(distance, x, y, seed)
    return {"value": value, "low": float(low), "high": float(high), "samples": len(x)}


def _mean_psnr(psnr: np.ndarray) -> np.ndarray:
    """The mean PSNR of each sample's frames, (N, T) to (N,) float64.

    Frames that are reconstructed exactly, such as black ones, count as PSNR_CEILING. If all N·T frames are
    exact, the codec is lossless and the result is infinite.
    """
    psnr = psnr.astype(np.float64)
    if np.isposinf(psnr).all():
        return np.full(len(psnr), np.inf)
    return np.minimum(psnr, metrics.PSNR_CEILING).mean(1)


@jax.jit
def _frame_scores(lpips_params: dict, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Scores (B, 1) of frames (B, 1, H, W, C)."""
    scores = {name: getattr(metrics, name)(x, y) for name in ("squared_error", "psnr", "ssim", "spots")}
    scores |= metrics.psnr_of_parts(x, y)
    if min(x.shape[2:4]) >= perceptual.SMALLEST:
        for network, weights in lpips_params.items():
            scores[f"lpips_{network}"] = perceptual.lpips(weights, x[:, 0], y[:, 0], network)[:, None]
    return scores


_flicker, _seam_error, _psnr = jax.jit(metrics.flicker), jax.jit(metrics.seam_error), jax.jit(metrics.psnr)
