"""Scores of a codec on a set of samples, batch by batch: what is kept of a sample are a few numbers.

Every score is of one sample by itself, so the size of the batches changes nothing; distances of distributions
are of the whole set.
"""

import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vaejax.evaluate import distances as frechet
from vaejax.evaluate import latent_metrics as latents
from vaejax.evaluate import metrics
from vaejax.evaluate.codecs.registry import Codec, normalise
from vaejax.networks import lpips as perceptual
from vaejax.runtime import mesh as sharding

PARTS = 16  # samples of a bucket that are also decoded in parts and transformed: each costs as much again
TILE = 32  # latent pixels, where a frame is large enough
SEAM = 4  # pixels on either side of where tiles meet; of chunks it is one frame
KEPT = 2**28  # bytes of latents with a class that are kept for VIV
# Distances of distributions by the network whose features they compare.
DISTANCES = {
    "efficientnet": ("frechet_efficientnet", "kid_efficientnet"),
    "inception": ("rfid_inception", "kid_inception"),
    "i3d": ("rfvd_i3d", "kvd_i3d"),
}


class Judge:
    """The networks that scores ask, and the devices that share a batch.

    Args:
      mesh: of one process; the size of a batch is a multiple of its shards.
      lpips_params: by network, from `perceptual.load`.
    """

    def __init__(self, mesh: Mesh, lpips_params: Mapping[str, dict]):
        self._mesh = mesh
        self._lpips = sharding.replicate(mesh, dict(lpips_params))

    def scores(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """Compares frames (B, T, H, W, 3) in [-1, 1], x the original.

        Returns:
          'squared_error', 'psnr', 'ssim', 'spots' of each frame, (B, T), and 'lpips_NETWORK' where they are
          not too small for it; for clips 'flicker', (B,).
        """
        x, y = self._shared(x), self._shared(y)
        # A frame at a time: a network's activations of a batch of clips would not fit.
        with jax.default_matmul_precision("float32"):  # accelerators would take fewer digits
            each = [_of_frames(self._lpips, x[:, t : t + 1], y[:, t : t + 1]) for t in range(x.shape[1])]
        scores = {name: np.concatenate([one[name] for one in each], axis=1) for name in each[0]}
        if x.shape[1] > 1:
            scores["flicker"] = np.asarray(_flicker(x, y))
        return scores

    def in_parts(
        self, x: np.ndarray, whole: np.ndarray, parts: np.ndarray, at: np.ndarray, how: str
    ) -> dict[str, np.ndarray]:
        """What decoding in parts does.

        Args:
          x: the original (B, T, H, W, 3) in [-1, 1].
          whole: like x, decoded at once.
          parts: like x, decoded in parts.
          at: where parts meet, broadcasting to (T, H, W).
          how: 'chunked' or 'tiled'.

        Returns:
          'seam_HOW', 'seam_HOW_elsewhere' (see `metrics.seam_error`), each (B,), and 'psnr_HOW', (B, T).
        """
        x, whole, parts = self._shared(x), self._shared(whole), self._shared(parts)
        seam, elsewhere = _seam_error(whole, parts, at)
        found = {f"seam_{how}": seam, f"seam_{how}_elsewhere": elsewhere, f"psnr_{how}": _psnr(x, parts)}
        return {name: np.asarray(value) for name, value in found.items()}

    def _shared(self, frames: np.ndarray) -> jax.Array:
        return sharding.shard_batch(self._mesh, np.asarray(frames, np.float32))


class Tally:
    """The scores of one codec on one bucket.

    Args:
      codec: the codec.
      shape: (T, H, W) of the bucket.
      judge: of every codec alike.
      batch: samples that a codec of arrays is given at once, always as many: its programs are compiled once.
      features: what gives the features of frames (B, T, H, W, 3) in [-1, 1], (B, d) each, by network.
    """

    def __init__(
        self,
        codec: Codec,
        shape: tuple[int, int, int],
        judge: Judge,
        batch: int,
        features: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    ):
        self.codec, self.seconds, self.samples = codec, 0.0, 0
        self.latent_shape = codec.latent_shape(*shape)
        self._judge, self._batch, self._networks = judge, batch, features
        self._values: dict[str, list[np.ndarray]] = {}
        self._features: dict[str, list[np.ndarray]] = {name: [] for name in features}
        self._moments = latents.Moments()
        self._labelled: list[tuple[np.ndarray, str]] = []

    def add(self, frames: np.ndarray, labels: Sequence[str | None]) -> None:
        """Codes and scores a batch.

        Args:
          frames: (B, T, H, W, 3) uint8, B at most the batch.
          labels: the class of each sample; None where it has none.
        """
        count = len(frames)
        started = time.monotonic()
        frames, z, log_variance, y, bits = self._code(frames)
        self.seconds += time.monotonic() - started
        x = normalise(frames)
        found = self._judge.scores(x, y) | {"bits_per_pixel": bits}
        if z is not None:
            self._keep(z[:count], None if log_variance is None else log_variance[:count], labels)
            wanted = min(count, PARTS - self.samples)
            if wanted > 0:
                found |= {name: value[:wanted] for name, value in self._in_parts(z, x, y).items()}
        for name, value in found.items():
            self._values.setdefault(name, []).append(value[:count])
        for name, network in self._networks.items():
            self._features[name].append(network(y[:count]))
        self.samples += count

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """What frames (B, T, H, W, 3) uint8 come back as, float32 in [-1, 1], and not counted."""
        return self._code(frames)[3][: len(frames)]

    def quality(self) -> np.ndarray:
        """The PSNR of every sample in dB, (N,)."""
        return _in_db(np.concatenate(self._values["psnr"]))

    def results(self, originals: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
        """Everything there is to tell.

        Args:
          originals: features (N, d) of the original frames, by network.
          seed: of the bootstrap.

        Returns:
          'scores': {NAME: {'value', 'low', 'high', 'samples'}}, the interval of 95% by bootstrap over
          samples; 'psnr_by_frame': dB of each frame index, (T,); 'samples'; of codecs with latents
          'latent_shape' (t, h, w, c) and 'latents', see `latents.Moments.statistics`, with 'viv' where
          there are classes.
        """
        values = {name: np.concatenate(parts) for name, parts in self._values.items()}
        errors = values.pop("squared_error").astype(np.float64)
        scores = {}
        for name, value in values.items():
            if name.startswith("psnr"):
                value = _in_db(value)
            elif value.ndim > 1:
                value = value.astype(np.float64).mean(1)
            if not np.isnan(value).all():  # frames too small for it
                scores[name] = _mean(value, seed)
        of_samples = errors.mean(1, keepdims=True)
        scores["psnr_pooled"] = _with_interval(
            lambda x, _: metrics.psnr_pooled(x), of_samples, of_samples, seed
        )
        for network, parts in self._features.items():
            x, y = originals[network], np.concatenate(parts)
            broken = int((~np.isfinite(y).all(1)).sum())
            if broken:
                print(
                    f"{self.codec.name}: {broken} of {len(y)} samples are not finite; its distances are NaN",
                    file=sys.stderr,
                )
                unknown = dict.fromkeys(("value", "low", "high"), math.nan) | {"samples": len(y)}
                scores |= dict.fromkeys(DISTANCES[network], unknown)
            elif len(x) > 1:
                of_spread, of_kernel = DISTANCES[network]
                scores[of_spread] = _with_interval(frechet.frechet_distance, x, y, seed)
                # y_i was made from x_i: alike, they are no two samples.
                paired = functools.partial(frechet.kernel_distance, paired=True)
                scores[of_kernel] = _with_interval(paired, x, y, seed)
        found = {"scores": scores, "samples": self.samples}
        by_frame = np.concatenate(self._values["psnr"])
        found["psnr_by_frame"] = [float(_in_db(frame[None])[0]) for frame in by_frame.T]
        if self.latent_shape:
            found["latent_shape"] = list(self.latent_shape)
            found["latents"] = self._moments.statistics()
            if self._labelled:
                kept, labels = zip(*self._labelled, strict=True)
                found["latents"] |= {
                    "viv": latents.viv(np.stack(kept), labels),
                    "viv_samples": len(labels),
                    "viv_classes": len(set(labels)),
                }
        return found

    def _code(self, frames: np.ndarray) -> tuple:
        """Frames, filled up to the batch with copies; latents, log-variance or None; decoded frames; bits."""
        count = len(frames)
        repeats = np.arange(self._batch) % count
        filled = frames[repeats]
        if not self.latent_shape:  # files: each sample has its own, and there is nothing to compile
            files = [self.codec.encode(frames[i : i + 1]) for i in range(count)]
            y = np.concatenate([self.codec.decode(file) for file in files])[repeats]
            return filled, None, None, y, np.array([self.codec.bits(file) for file in files])
        if hasattr(self.codec, "posterior"):
            z, log_variance = self.codec.posterior(filled)
        else:
            z, log_variance = self.codec.encode(filled), None
        return filled, z, log_variance, self.codec.decode(z), np.full(count, self.codec.bits(z))

    def _keep(self, z: np.ndarray, log_variance: np.ndarray | None, labels: Sequence[str | None]) -> None:
        self._moments.add(z, log_variance)
        room = max(0, KEPT // z[0].nbytes - len(self._labelled))
        classed = [(one, label) for one, label in zip(z, labels, strict=True) if label is not None]
        self._labelled += classed[:room]

    def _in_parts(self, z: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """Transformed latents, and decoding in chunks and in tiles where the codec can."""
        found = latents.equivariance(self.codec.decode, z, x)
        t, h, w = z.shape[1:4]
        chunk, (tile, overlap) = chunk_size(t), tile_size(h, w)
        if chunk and hasattr(self.codec, "decode_chunked"):
            at = chunk_seams(t, chunk, self.codec.temporal_factor)
            parts = self.codec.decode_chunked(z, chunk)
            found |= self._judge.in_parts(x, y, parts, at, "chunked")
        if tile and hasattr(self.codec, "decode_tiled"):
            at = tile_seams(h, w, tile, overlap, self.codec)
            parts = self.codec.decode_tiled(z, tile, overlap)
            found |= self._judge.in_parts(x, y, parts, at, "tiled")
        return found


def chunk_size(t: int) -> int:
    """Latent frames of a chunk, so that a clip of t is two or three; 0 for an image."""
    return t // 2


def tile_size(h: int, w: int) -> tuple[int, int]:
    """Latent pixels of a tile's side and of its overlap; (0, 0) if a frame is too small to be cut."""
    tile = min(TILE, 5 * max(h, w) // 8) // 4 * 4
    return tile, tile // 4


def chunk_seams(t: int, chunk: int, temporal_factor: int) -> np.ndarray:
    """The frames on either side of where chunks meet, (T, 1, 1) booleans; latent frame 0 is one frame."""
    at = np.zeros(1 + (t - 1) * temporal_factor, bool)
    for first in range(chunk, t, chunk):
        frame = 1 + (first - 1) * temporal_factor
        at[frame - 1 : frame + 1] = True
    return at[:, None, None]


def tile_seams(h: int, w: int, tile: int, overlap: int, codec: Codec) -> np.ndarray:
    """The pixels where tiles overlap, and SEAM around them, (1, H, W) booleans."""
    s = codec.spatial_factor

    def along(size: int) -> np.ndarray:
        places = codec.tile_spans(size, tile, overlap)
        at = np.zeros(size * s, bool)
        for (_, stop), (start, _) in itertools.pairwise(places):
            at[start * s - SEAM : stop * s + SEAM] = True
        return at

    return (along(h)[:, None] | along(w))[None]


def _mean(values: np.ndarray, seed: int) -> dict[str, float]:
    value = float(np.mean(values, dtype=np.float64))
    low, high = frechet.mean_interval(values, seed) if np.isfinite(value) else (value, value)
    return {"value": value, "low": float(low), "high": float(high), "samples": len(values)}


def _with_interval(distance: Callable, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, float]:
    value, low, high = float(distance(x, y)), np.nan, np.nan
    if not np.isfinite(value):
        low = high = value
    elif len(x) > 1:
        low, high = frechet.interval(distance, x, y, seed)
    return {"value": value, "low": float(low), "high": float(high), "samples": len(x)}


def _in_db(psnr: np.ndarray) -> np.ndarray:
    """The mean PSNR of each sample's frames, (N,) of (N, T), float64.

    A few exact frames, black ones say, count as PSNR_CEILING; if all frames of the set are exact, the codec
    loses nothing and the answer is infinite.
    """
    psnr = psnr.astype(np.float64)
    if np.isposinf(psnr).all():
        return np.full(len(psnr), np.inf)
    return np.minimum(psnr, metrics.PSNR_CEILING).mean(1)


@jax.jit
def _of_frames(lpips_params: dict, x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    """Scores (B, 1) of frames (B, 1, H, W, 3)."""
    scores = {name: getattr(metrics, name)(x, y) for name in ("squared_error", "psnr", "ssim", "spots")}
    if min(x.shape[2:4]) >= perceptual.SMALLEST:
        for network, weights in lpips_params.items():
            scores[f"lpips_{network}"] = perceptual.lpips(weights, x[:, 0], y[:, 0], network)[:, None]
    return scores


_flicker, _seam_error, _psnr = jax.jit(metrics.flicker), jax.jit(metrics.seam_error), jax.jit(metrics.psnr)
