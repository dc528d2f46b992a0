"""Scores a latent space by how well a small diffusion model learns it in a fixed budget.

**The main score is the kernel distance between decoded generated samples and real held-out samples, in the
features of a pretrained network; lower is better.** It measures what users of a diffusion model see. Latents
that are easy to model only because they hold little, such as empty or blurred ones, do not get a good score:
they decode badly. The other scores put the main score in context:

- `floor`: the distances between decoded latents of *training samples* and the real samples. A perfect model
  of the latents would reach these distances. If the floor is high, the codec limits the score; otherwise the
  diffusion model does. The floor is not subtracted from the score. Latents that are mostly noise decode
  badly, so their floor is high. They are easy to generate, so their score is hardly above their floor.
  Ranking by the difference would therefore put codecs with such latents first.
- `frechet`: the Fréchet distance of the same samples. Unlike the kernel distance, the Fréchet distance is
  biased upward for few samples. If the user provides Inception weights, `fid` is the standard FID.
- `loss`: the flow-matching loss on held-out latents, normalized per channel, at fixed times with fixed noise.
  `white_loss` is the loss of a model that knows nothing beyond this normalization, and `explained` is
  1 - `loss` / `white_loss`. Compare these losses only between codecs with latents of the same shape. They do
  not rank codecs, because redundant latents are easy to explain.

Features come from EfficientNet for the middle frame of a sample, or from I3D for whole clips that are long
enough. So `kernel` and `frechet` are KID and FID with EfficientNet instead of Inception, or KVD and FVD.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from vaejax.errors import InputError, Stopped
from vaejax.evaluate import distances
from vaejax.evaluate.codecs.base import Codec, check_shape
from vaejax.evaluate.features import SHORTEST_CLIP, Features
from vaejax.models.pixels import to_uint8
from vaejax.probe import flow
from vaejax.probe.dit import DiT
from vaejax.probe.fit import Params, fit, velocity
from vaejax.probe.latents import Latents
from vaejax.probe.presets import Preset
from vaejax.probe.samples import BATCH, Media
from vaejax.runtime import distributed

SHOWN = 8  # samples per row of the picture samples.png

Decoder = Callable[[np.ndarray], np.ndarray]  # latents (b, t, h, w, c) to frames (B, T, H, W, 3) in [-1, 1]


class Probe:
    """Scores any number of codecs with the same budget and media.

    Features of the held-out samples are computed once, when decoded samples are first compared with them.

    Args:
      media: training and held-out samples.
      preset: the budget.
      features: the pretrained networks.
      fid: whether to compute FID too; requires that `features` has Inception weights.
      progress: whether to show progress on stderr.
      stopping: function called between batches and every few updates; if it returns True, the probe stops.

    Attributes:
      media: the argument.
      network: the network whose features are compared, 'efficientnet' or 'i3d'.

    Raises:
      weights.BadWeights: if the weights of a network are missing or damaged.
      Stopped: from any method, if `stopping` returned True.
    """

    def __init__(
        self,
        media: Media,
        preset: Preset,
        features: Features,
        fid: bool = False,
        progress: bool = False,
        stopping: Callable[[], bool] = lambda: False,
    ):
        self.media, self._preset, self._features, self._fid = media, preset, features, fid
        self._progress, self._stopping = progress, stopping
        self._model = transformer(preset, media.bucket.frames > 1, len(media.classes))
        self.network = "i3d" if media.bucket.frames >= SHORTEST_CLIP else "efficientnet"
        features.load(self.network, *(["inception"] if fid else []))

    @functools.cached_property
    def _real(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Features of the held-out samples, and the first of these samples."""
        real = [(self._extract(frames), frames[:SHOWN]) for frames, _ in self._read("eval", "real samples")]
        return _concatenate([features for features, _ in real]), real[0][1]

    def latents(self, codec: Codec) -> Latents:
        """Encodes the training and the held-out samples, and normalizes their latents.

        Raises:
          InputError: if the codec has no latents or does not take samples of the bucket's shape, or the patch
            size does not divide the height and width of the latents.
        """
        bucket, patch = self.media.bucket, self._preset.patch
        size = bucket.frames, bucket.height, bucket.width
        check_shape(codec, *size, bucket.channels)
        shape = codec.latent_shape(*size)
        if shape is None:
            accepted = "a run, an export, diffusers:CLASS:PATH or linear"
            raise InputError(f"{codec.name}: no latents to learn; accepted: {accepted}")
        if shape[1] % patch or shape[2] % patch:
            raise InputError(
                f"patch = {patch}: latents are {shape[1]}x{shape[2]}; accepted: a divisor of both sides"
            )
        parts = []
        for split in ("train", "eval"):
            encoded = [(codec.encode(x), labels) for x, labels in self._read(split, f"encoding {split}")]
            parts.append([np.concatenate(part) for part in zip(*encoded, strict=True)])
        (train, labels), (held_out, held_out_labels) = parts
        return Latents.normalized(train, held_out, labels, held_out_labels)

    def score(
        self, latents: Latents, decode: Decoder, seeds: Sequence[int] = (0, 1, 2)
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Fits the model and compares decoded generated samples with real ones, once per seed.

        Args:
          latents: latents of a codec, as returned by the method `latents` of this class.
          decode: decoder of the codec; it takes latents that are not normalized.
          seeds: seeds of the fits and of the generated samples.

        Returns:
          Two dictionaries, of scores and of samples to look at.

          The docstring of this module explains the scores. 'kernel', 'frechet', 'fid' (if requested), 'loss'
          and 'explained' each have the 'mean' over seeds, the 'spread' (standard deviation over seeds, NaN
          for one seed), and 'seeds', the value for each seed. 'floor' has the 'kernel', 'frechet' and, if
          requested, 'fid' of decoded training latents. 'white_loss' is the loss of a model that has learned
          nothing.

          The samples are up to SHOWN of each kind, (n, T, H, W, C) uint8: 'real, held out' are held-out
          samples, 'decoded training latents' are reconstructions of other samples, and 'generated' are
          generated with the first seed.
        """
        power = np.square(latents.held_out).mean(dtype=np.float64)
        white_loss = float(flow.white_loss(flow.VALIDATION_TIMES, power).mean())
        chosen = np.arange(self._preset.samples) % len(latents.train)
        floor, decoded = self._compare(latents.denormalize(latents.train[chosen]), decode, "decoding")
        shown = {"real, held out": self._real[1], "decoded training latents": decoded}
        results = []
        for seed in seeds:
            with self._bar(self._preset.steps, f"seed {seed}", "update") as bar:
                params = fit(self._model, latents, self._preset, seed, functools.partial(self._tick, bar))
            loss = self._validate(params, latents)
            z = latents.denormalize(self._generate(params, latents, seed))
            found, generated = self._compare(z, decode, f"seed {seed}: decoding")
            results.append(found | {"loss": loss, "explained": 1 - loss / white_loss})
            shown.setdefault("generated", generated)
        scores = {name: _summarize([result[name] for result in results]) for name in results[0]}
        return scores | {"floor": floor, "white_loss": white_loss}, shown

    def _validate(self, params: Params, latents: Latents) -> float:
        """The flow-matching loss of all held-out latents at all validation times."""
        times = flow.VALIDATION_TIMES.astype(np.float32)

        def losses(indices: np.ndarray) -> jax.Array:
            sample, time = np.divmod(indices, len(times))
            x, labels = latents.held_out[sample], latents.held_out_labels[sample]
            return _losses(params, jax.random.key(0), indices, x, times[time], labels, model=self._model)

        values = self._in_batches(losses, len(latents.held_out) * len(times))
        return float(values.mean(dtype=np.float64))

    def _generate(self, params: Params, latents: Latents, seed: int) -> np.ndarray:
        """Generated normalized latents (samples, t, h, w, c).

        Their classes are those of the training samples, in order; if there are too few, they repeat.
        """
        key = jax.random.fold_in(jax.random.key(seed), 2)  # 2, because `fit` uses 0 and 1
        shape, steps = latents.train.shape[1:], self._preset.solver_steps

        def solve(indices: np.ndarray) -> jax.Array:
            labels = latents.labels[indices % len(latents.labels)]
            return _solve(params, key, indices, labels, model=self._model, shape=shape, steps=steps)

        return self._in_batches(solve, self._preset.samples)

    def _in_batches(self, function: Callable[[np.ndarray], jax.Array], count: int) -> np.ndarray:
        """Applies a function to the indices 0 to `count` - 1 in batches; the last is padded with copies."""
        results, batch = [], self._preset.batch
        for start in range(0, count, batch):
            self._check_stop()
            results.append(np.asarray(function(np.minimum(np.arange(start, start + batch), count - 1))))
        return np.concatenate(results)[:count]

    def _compare(self, z: np.ndarray, decode: Decoder, task: str) -> tuple[dict[str, float], np.ndarray]:
        """Decodes latents; returns distances to the real samples, and the first decoded samples as uint8."""
        parts, shown = [], []
        with self._bar(len(z), task, "sample") as bar:
            for start in range(0, len(z), BATCH):
                frames = decode(z[start : start + BATCH])
                parts.append(self._extract(frames))
                if not shown:
                    shown.append(to_uint8(frames[:SHOWN]))
                self._advance(bar, len(frames))
        ours, real = _concatenate(parts), self._real[0]
        found = {
            "kernel": distances.kernel_distance(ours[self.network], real[self.network]),
            "frechet": distances.frechet_distance(ours[self.network], real[self.network]),
        }
        if self._fid:
            found["fid"] = distances.frechet_distance(ours["inception"], real["inception"])
        return found, shown[0]

    def _extract(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Network name -> features (B, d) of each sample, from the whole clip (I3D) or its middle frame."""
        middle = frames[:, frames.shape[1] // 2][:, None]
        clips = self.network == "i3d"
        features = {self.network: self._features.clips(frames) if clips else self._features.images(middle)}
        return features | ({"inception": self._features.inception(middle)} if self._fid else {})

    def _read(self, split: str, task: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = self._preset.train_samples if split == "train" else self._preset.samples
        with self._bar(count, task, "sample") as bar:
            batches = self.media.batches(split, count)
            for frames, labels in distributed.lockstep(batches, lambda batch: batch[0]):
                yield frames, labels
                self._advance(bar, len(frames))

    def _bar(self, total: int, task: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=task, unit=unit, disable=not self._progress, leave=False)

    def _check_stop(self) -> None:
        if self._stopping():
            raise Stopped

    def _advance(self, bar: tqdm, count: int) -> None:
        bar.update(count)
        self._check_stop()

    def _tick(self, bar: tqdm, updates: int, loss: jax.Array) -> None:
        self._advance(bar, updates)
        if not bar.disable:  # reading the loss waits for the device
            bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)


def transformer(preset: Preset, clips: bool, classes: int) -> DiT:
    """The transformer of a preset, for images or clips of this number of classes."""
    p, attention = preset, preset.attention
    if attention == "auto":
        attention = "factorised" if clips else "full"
    return DiT(p.width, p.depth, p.heads, p.patch, attention, classes, p.dtype)


@functools.partial(jax.jit, static_argnames="model")
def _losses(
    params: Params,
    key: jax.Array,
    indices: jax.Array,
    x: jax.Array,
    times: jax.Array,
    labels: jax.Array,
    *,
    model: DiT,
) -> jax.Array:
    return flow.losses(velocity(model, params, labels), x, _noise(key, indices, x.shape[1:]), times)


@functools.partial(jax.jit, static_argnames=("model", "shape", "steps"))
def _solve(
    params: Params,
    key: jax.Array,
    indices: jax.Array,
    labels: jax.Array,
    *,
    model: DiT,
    shape: tuple[int, ...],
    steps: int,
) -> jax.Array:
    return flow.solve(velocity(model, params, labels), _noise(key, indices, shape), steps)


def _noise(key: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise (b, *shape) that depends on the index of each sample, not on its batch."""
    return jax.vmap(lambda index: jax.random.normal(jax.random.fold_in(key, index), shape))(indices)


def _concatenate(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _summarize(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "spread": spread, "seeds": list(values)}
