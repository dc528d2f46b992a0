"""The score of a latent space: how near to real samples a small diffusion model comes in a fixed budget.

**The score is the kernel distance, in the features of a classifier, between decoded generated samples and
real held-out ones; lower is better.** It is what a person who trains a diffusion model will see, and no
property of the latents alone can improve it: empty, blurred or redundant latents are easily modelled, but
decode badly. Beside it stand:

- `floor`: the distances of decoded latents of *training samples*, what a perfect model of the latents would
  get. It tells whether a bad score is the codec's fault or the learning's. It is not subtracted: a codec
  whose latents are mostly noise has a high floor, and noise is easily generated.
- `frechet`: the Fréchet distance of the same samples, which few samples bias upwards; the kernel distance has
  no bias. With a person's Inception weights, `fid` as well.
- `loss`: the flow-matching loss of held-out latents, normalised channel by channel, at fixed times and with
  fixed noise; and `explained`, the share by which it is below `white_loss`, that of a model that knows no
  more than this normalisation. Codecs of one latent shape may be compared by it, but it is no score: latents
  that repeat themselves are easily explained.

Features are EfficientNet's, of a clip its middle frame's; of clips that are long enough I3D's of the whole
clip. So `kernel` and `frechet` are KID and FID with another network, or KVD and FVD.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from vaejax.errors import InputError, Stopped
from vaejax.evaluate import distances as frechet
from vaejax.evaluate.codecs.registry import Codec, check_shape
from vaejax.evaluate.features import SHORTEST_CLIP, Features
from vaejax.probe import flow
from vaejax.probe.controls import Decoder
from vaejax.probe.dit import DiT
from vaejax.probe.fit import fit, velocity
from vaejax.probe.latents import Latents
from vaejax.probe.presets import Preset
from vaejax.probe.samples import BATCH, Media
from vaejax.runtime import distributed as multihost

SHOWN = 8  # samples of each kind for people to look at


class Probe:
    """A budget and its media: looks at the real samples once, then scores any number of codecs.

    Args:
      media: training and held-out samples.
      preset: the budget.
      features: the networks.
      fid: ask Inception too, whose weights `features` has.
      progress: shows what is under way on stderr.
      stopping: asked between two batches and every few updates whether to give up.

    Raises:
      weights.BadWeights: a network's weights are missing or damaged.
      Stopped: by this or a method, once `stopping` says so.

    Attributes:
      media: as given.
      network: whose features are compared, 'efficientnet' or 'i3d'.
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
        self._model = DiT(
            preset.width,
            preset.depth,
            preset.heads,
            preset.patch,
            preset.attention,
            len(media.classes),
            preset.dtype,
        )
        self.network = "i3d" if media.bucket.frames >= SHORTEST_CLIP else "efficientnet"
        self._seen(np.zeros((1, media.bucket.frames, 8, 8, 3), np.uint8))  # missing weights are told at once
        real = [(frames[:SHOWN], self._seen(frames)) for frames, _ in self._read("eval", "real samples")]
        self._shown, self._real = real[0][0], _joined([seen for _, seen in real])

    def latents(self, codec: Codec) -> Latents:
        """Encodes the training and the held-out samples.

        Raises:
          InputError: if the codec has no latents, cannot take the shape, or the patch does not divide it.
        """
        bucket, patch = self.media.bucket, self._preset.patch
        size = bucket.frames, bucket.height, bucket.width
        check_shape(codec, *size)
        shape = codec.latent_shape(*size)
        if shape is None:
            raise InputError(f"{codec.name}: has no latents to learn; accepted: a codec that has")
        if shape[1] % patch or shape[2] % patch:
            raise InputError(
                f"patch = {patch}: latents are {shape[1]}x{shape[2]}; accepted: a divisor of both"
            )
        parts = []
        for split in ("train", "eval"):
            encoded = [(codec.encode(x), labels) for x, labels in self._read(split, f"encoding {split}")]
            parts.append([np.concatenate(part) for part in zip(*encoded, strict=True)])
        (train, labels), (held_out, held_out_labels) = parts
        return Latents.normalised(train, held_out, labels, held_out_labels)

    def score(
        self, latents: Latents, decode: Decoder, seeds: Sequence[int] = (0, 1, 2)
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Fits, generates, decodes and compares, seed by seed.

        Args:
          latents: from `latents`.
          decode: latents in the codec's units (b, t, h, w, c) to frames (B, T, H, W, 3) in [-1, 1].
          seeds: of the fits and of what is generated.

        Returns:
          The scores: 'kernel', 'frechet', where asked 'fid', 'loss' and 'explained', each {'mean', 'spread':
          standard deviation from seed to seed, 'seeds': the value of every seed}; 'floor': distances;
          'white_loss'. And samples to look at, each (SHOWN, T, H, W, 3) uint8: 'real', 'decoded' latents of
          the training set, and 'generated' by the first seed.
        """
        power = np.square(latents.held_out).mean(dtype=np.float64)
        white_loss = float(flow.white_loss(flow.VALIDATION_TIMES, power).mean())
        chosen = np.arange(self._preset.samples) % len(latents.train)
        floor, decoded = self._judged(latents.restore(latents.train[chosen]), decode, "decoding")
        shown = {"real": self._shown, "decoded": decoded}
        found = []
        for seed in seeds:
            with self._bar(self._preset.steps, f"seed {seed}", " updates") as bar:
                params = fit(self._model, latents, self._preset, seed, functools.partial(self._tick, bar))
            loss = self._validate(params, latents)
            z = latents.restore(self._generate(params, latents, seed))
            distances, generated = self._judged(z, decode, f"seed {seed}: decoding")
            found.append(distances | {"loss": loss, "explained": 1 - loss / white_loss})
            shown.setdefault("generated", generated)
        scores = {name: _over_seeds([one[name] for one in found]) for name in found[0]}
        return scores | {"floor": floor, "white_loss": white_loss}, shown

    def _validate(self, params: dict, latents: Latents) -> float:
        """The flow-matching loss of the held-out latents, each at every validation time."""
        times = flow.VALIDATION_TIMES.astype(np.float32)

        def losses(places: np.ndarray) -> jax.Array:
            sample, time = np.divmod(places, len(times))
            x, labels = latents.held_out[sample], latents.held_out_labels[sample]
            return _losses(params, jax.random.key(0), places, x, times[time], labels, model=self._model)

        found = self._in_batches(losses, len(latents.held_out) * len(times))
        return float(found.mean(dtype=np.float64))

    def _generate(self, params: dict, latents: Latents, seed: int) -> np.ndarray:
        """Normalised latents (samples, t, h, w, c), of classes in the proportions of the training set."""
        key = jax.random.fold_in(jax.random.key(seed), 2)  # fit's are 0 and 1
        shape, steps = latents.train.shape[1:], self._preset.solver_steps

        def solve(places: np.ndarray) -> jax.Array:
            labels = latents.labels[places % len(latents.labels)]
            return _solve(params, key, places, labels, model=self._model, shape=shape, steps=steps)

        return self._in_batches(solve, self._preset.samples)

    def _in_batches(self, function: Callable[[np.ndarray], jax.Array], count: int) -> np.ndarray:
        """The function of the places 0 to `count`, a batch at once; the last one is filled up with copies."""
        found, batch = [], self._preset.batch
        for start in range(0, count, batch):
            self._go_on()
            found.append(np.asarray(function(np.minimum(np.arange(start, start + batch), count - 1))))
        return np.concatenate(found)[:count]

    def _judged(self, z: np.ndarray, decode: Decoder, doing: str) -> tuple[dict[str, float], np.ndarray]:
        """The distances of decoded latents to the real samples, and the first of them, uint8."""
        seen, shown = [], None
        with self._bar(len(z), doing, " samples") as bar:
            for start in range(0, len(z), BATCH):
                frames = decode(z[start : start + BATCH])
                seen.append(self._seen(frames))
                shown = _pixels(frames[:SHOWN]) if shown is None else shown
                self._advance(bar, len(frames))
        ours, real = _joined(seen), self._real
        distances = {
            "kernel": frechet.kernel_distance(ours[self.network], real[self.network]),
            "frechet": frechet.frechet_distance(ours[self.network], real[self.network]),
        }
        if self._fid:
            distances["fid"] = frechet.frechet_distance(ours["inception"], real["inception"])
        return distances, shown

    def _seen(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Features (B, d) by network: of clips as wholes, or of their middle frames; one of a sample."""
        middle = frames[:, frames.shape[1] // 2][:, None]
        whole = self.network == "i3d"
        seen = {self.network: self._features.clips(frames) if whole else self._features.images(middle)}
        return seen | ({"inception": self._features.inception(middle)} if self._fid else {})

    def _read(self, split: str, doing: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        count = self._preset.train_samples if split == "train" else self._preset.samples
        with self._bar(count, doing, " samples") as bar:
            batches = self.media.batches(split, count)
            for frames, labels in multihost.lockstep(batches, lambda batch: batch[0]):
                yield frames, labels
                self._advance(bar, len(frames))

    def _bar(self, total: int, doing: str, unit: str) -> tqdm:
        return tqdm(total=total, desc=doing, unit=unit, disable=not self._progress, leave=False)

    def _go_on(self) -> None:
        if self._stopping():
            raise Stopped

    def _advance(self, bar: tqdm, count: int) -> None:
        bar.update(count)
        self._go_on()

    def _tick(self, bar: tqdm, updates: int, loss: jax.Array) -> None:
        self._advance(bar, updates)
        if not bar.disable:  # reading a loss waits for it
            bar.set_postfix_str(f"loss {float(loss):.3f}", refresh=False)


@functools.partial(jax.jit, static_argnames="model")
def _losses(
    params: dict,
    key: jax.Array,
    places: jax.Array,
    x: jax.Array,
    times: jax.Array,
    labels: jax.Array,
    *,
    model: DiT,
) -> jax.Array:
    return flow.losses(velocity(model, params, labels), x, _noise(key, places, x.shape[1:]), times)


@functools.partial(jax.jit, static_argnames=("model", "shape", "steps"))
def _solve(
    params: dict,
    key: jax.Array,
    places: jax.Array,
    labels: jax.Array,
    *,
    model: DiT,
    shape: tuple[int, ...],
    steps: int,
) -> jax.Array:
    return flow.solve(velocity(model, params, labels), _noise(key, places, shape), steps)


def _noise(key: jax.Array, places: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Noise (b, *shape) that depends on each sample's own place alone, whatever batch it comes in."""
    return jax.vmap(lambda place: jax.random.normal(jax.random.fold_in(key, place), shape))(places)


def _joined(batches: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
    return {"mean": float(np.mean(values)), "spread": spread, "seeds": list(values)}


def _pixels(frames: np.ndarray) -> np.ndarray:
    return np.round((frames + 1) * 127.5).astype(np.uint8)
