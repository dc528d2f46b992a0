"""Evaluation during training: every bucket's held-out samples, raw and averaged parameters, linear codec."""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vaejax.data import pipeline
from vaejax.data.bucket import Bucket
from vaejax.errors import InputError, Stopped
from vaejax.evaluate.codecs.linear import LinearCodec, psnr_linear
from vaejax.evaluate.reconstruction import SCORES, score
from vaejax.losses.objective import Objective
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import distributed as multihost
from vaejax.runtime import mesh as sharding


class HeldOut:
    """The held-out samples of a run's buckets and what can be asked of them.

    Args:
      sources: opened sources.
      buckets: of the run; one without held-out samples is passed over.
      config: the run's.
      model, objective, mesh: the run's.
      lpips_params: of the networks that LPIPS is told of, by name.
      stopping: asked between two batches, by all processes together, whether to give up.
    """

    def __init__(
        self,
        sources: Sequence,
        buckets: Sequence[Bucket],
        config: ConfigDict,
        model: Autoencoder,
        objective: Objective,
        mesh: Mesh,
        lpips_params: Mapping[str, dict],
        stopping: Callable[[], bool] = lambda: False,
    ):
        self._sources, self._buckets, self._config, self._mesh = sources, buckets, config, mesh
        self._stopping = stopping
        self._channels = model.architecture.latent_channels
        self._factors = model.architecture.spatial_factor, model.architecture.temporal_factor

        def placed_score(*arguments):
            with sharding.placing_frames(mesh):
                return score(*arguments, model=model, objective=objective, shown=config.panels.samples)

        self._score = jax.jit(placed_score, out_shardings=sharding.replicated(mesh))
        self._lpips = sharding.replicate(mesh, dict(lpips_params))
        self._linear: dict[str, LinearCodec | None] = {}

    def evaluate(self, average: dict, params: dict) -> dict[str, float]:
        """'BUCKET/NAME' to value for every bucket, and their 'mean/NAME'.

        NAME: psnr, ssim, nll, kl, spots, flicker, lpips_NETWORK of the average (EMA) of the parameters, the
        same but LPIPS with _raw of the raw ones, psnr_linear of the best linear codec of the same latent
        size, samples, and activation spreads.

        Raises:
          Stopped: once `stopping` says so, as `panels` does.
        """
        scores = {}
        for bucket in self._buckets:
            scores |= {
                f"{bucket.name}/{k}": v for k, v in self._evaluate_bucket(bucket, average, params).items()
            }
        for name in SCORES:
            values = [value for key, value in scores.items() if key.split("/")[1] == name]
            if values:
                scores[f"mean/{name}"] = float(np.mean(values))
        return scores

    def table(self, step: int, scores: dict[str, float]) -> str:
        """The scores for people, a line a bucket."""
        lines = [f"evaluation at step {step}: EMA parameters | raw"]
        for bucket in self._buckets:
            get = functools.partial(_get, scores, bucket.name)
            if f"{bucket.name}/psnr" in scores:
                linear = f"  (linear {get('psnr_linear'):6.2f})" if self._config.eval.linear_samples else ""
                lines.append(
                    f"  {bucket.name:20} psnr {get('psnr'):6.2f} | {get('psnr_raw'):6.2f} dB{linear}"
                    f"  ssim {get('ssim'):.4f} | {get('ssim_raw'):.4f}"
                    f"  lpips {get('lpips_alexnet'):.3f}  nll {get('nll'):+.3f}  kl {get('kl'):.3f}"
                )
        return "\n".join(lines)

    def panels(self, average: dict) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]]:
        """The first samples of every bucket: its name, original, EMA reconstruction, linear codec or None.

        Each (N, T, H, W, C) uint8.
        """
        for bucket in self._buckets:
            for original, frames, count in self._batches(bucket):
                shown = min(count, self._config.panels.samples)
                _, _, reconstruction = self._score(average, self._lpips, frames)
                linear = self._linear.get(bucket.name)
                if linear:
                    linear = np.round((linear.reconstruct(original[:shown]) + 1) * 127.5).astype(np.uint8)
                yield bucket.name, original[:shown], np.asarray(reconstruction)[:shown], linear
                break

    def _evaluate_bucket(self, bucket: Bucket, average: dict, raw: dict) -> dict[str, float]:
        sums: dict[str, list[np.ndarray]] = {}
        spreads: dict[str, float] = {}
        linear, samples = [], 0
        for local, frames, count in self._batches(bucket):
            for suffix, params in (("", average), ("_raw", raw)):
                networks = {} if suffix else self._lpips
                scores, spread, _ = self._score(params, networks, frames)
                for name, values in scores.items():
                    sums.setdefault(name + suffix, []).append(np.asarray(values)[:count])
                if not suffix:
                    spreads = {k: max(float(v), spreads.get(k, 0.0)) for k, v in spread.items()}
            samples += count
            if codec := self._linear_codec(bucket):
                linear.append(psnr_linear(codec, local[:count]) * count)
        if not samples:
            return {}
        result = {name: float(np.concatenate(values).mean()) for name, values in sums.items()}
        if linear:
            result["psnr_linear"] = sum(linear) / samples
        return result | spreads | {"samples": samples}

    def _linear_codec(self, bucket: Bucket) -> LinearCodec | None:
        """Principal components of the bucket's training samples, fitted once a run; None without any."""
        count = self._config.eval.linear_samples
        if count and bucket.name not in self._linear:
            frames = pipeline.train_samples(
                self._sources, bucket, self._config.data, count, self._config.seed
            )
            try:
                codec = LinearCodec.fit(multihost.lockstep(frames), self._channels, *self._factors)
            except InputError as error:
                codec = None
                if jax.process_index() == 0:
                    print(f"{bucket.name} has no linear codec: {error}", file=sys.stderr)
            self._linear[bucket.name] = codec
        return self._linear.get(bucket.name)

    def _samples(self, bucket: Bucket):
        """Batches of the bucket's held-out samples, all of them on every host; none must end a run."""
        batches = pipeline.eval_batches(
            self._sources, bucket, self._config.data, self._config.eval.samples, bucket.batch
        )
        try:
            yield from multihost.lockstep(batches, lambda batch: batch.frames)
        except InputError as error:
            if jax.process_index() == 0:
                print(f"{bucket.name} is not evaluated: {error}", file=sys.stderr)

    def _batches(self, bucket: Bucket):
        """(all frames on this host, the global batch on the mesh, how many of its samples are real)."""
        for batch in self._samples(bucket):
            count = len(batch.frames)
            if self._stopping():
                raise Stopped
            repeats = np.arange(bucket.batch) % count  # the last batch is filled up, its copies not counted
            yield batch.frames, sharding.shard_batch(self._mesh, batch.frames[repeats]), count


def _get(scores: dict[str, float], bucket: str, name: str) -> float:
    return scores.get(f"{bucket}/{name}", float("nan"))
