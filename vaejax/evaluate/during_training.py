"""Evaluation during training: reconstruction scores and panels of held-out samples."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from vaejax.codec.load import TrainedVAE
from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.data.sampler import Sampler
from vaejax.data.table import Source, count_of
from vaejax.errors import InputError, Stopped
from vaejax.evaluate import metrics
from vaejax.evaluate.codecs.linear import LinearCodec, psnr_linear
from vaejax.evaluate.drift import DriftMeter
from vaejax.evaluate.latent_metrics import dead_channels
from vaejax.losses.objective import Objective
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.pixels import from_uint8, to_uint8
from vaejax.networks import lpips
from vaejax.runtime import distributed
from vaejax.runtime import mesh as sharding

if TYPE_CHECKING:
    from vaejax.config.schema import Config

T = TypeVar("T")
# Scores of this evaluation that checkpoint.best may name. 'psnr_raw' is the PSNR with the raw parameters,
# 'psnr' with their EMA.
SCORES = (
    "psnr",
    "psnr_raw",
    "psnr_rgb",
    "psnr_alpha",
    "ssim",
    "nll",
    "kl",
    "spots",
    "flicker",
    "lpips_alexnet",
    "lpips_vgg16",
)
TRAINING_SAMPLES = 16  # at most this many training samples per bucket are scored, to notice overfitting
LPIPS_FRAMES = 8  # LPIPS scores at most this many frames of a clip, evenly spaced


class TrainingEvaluation:
    """Scores a run's held-out samples, and reconstructs some of them to be drawn beside their originals.

    All processes call the methods together.

    Args:
      sources: data sources of the run.
      buckets: buckets of the run; those without held-out samples are skipped.
      config: configuration of the run.
      model: the autoencoder.
      objective: training objective, which computes 'nll' and 'kl'.
      mesh: mesh of the run.
      lpips_params: parameters of the LPIPS networks, by name.
      stopping: function called between batches, with the same result on all processes. If it returns True,
        the method that called it raises Stopped.
      known: the model of config.init or config.teacher, from which the drift of the latents is measured.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        buckets: Sequence[Bucket],
        config: "Config",
        model: Autoencoder,
        objective: Objective,
        mesh: Mesh,
        lpips_params: Mapping[str, dict],
        stopping: Callable[[], bool] = lambda: False,
        known: TrainedVAE | None = None,
    ):
        self._sources, self._buckets, self._config, self._mesh = sources, buckets, config, mesh
        self._stopping, self._is_main = stopping, jax.process_index() == 0
        self._channels = model.architecture.latent_channels
        self._factors = model.architecture.spatial_factor, model.architecture.temporal_factor
        self._score = scoring(config, model, objective, mesh)
        self._lpips = sharding.replicate(mesh, dict(lpips_params))
        trains_encoder = "encoder" in config.optim.train
        self._drift = DriftMeter(model, known, trains_encoder, mesh) if known else None
        self._linear: dict[str, LinearCodec | None] = {}
        self._files: dict[str, int] = {}  # distinct files of each evaluated bucket
        self._missing: dict[str, str] = {}  # reason for each bucket that is not evaluated
        self._warned = False

    def evaluate(self, average: dict, params: dict) -> dict[str, float]:
        """Scores of every bucket as 'BUCKET/NAME', and the means of SCORES over buckets as 'mean/NAME'.

        NAME is one of:
          psnr, psnr_rgb, psnr_alpha, ssim, nll, kl, spots, flicker, lpips_NETWORK: scores with the EMA
            parameters; see `score`.
          psnr_raw and so on: the same scores except LPIPS, with the raw parameters.
          psnr_linear: PSNR of the best linear codec of the same latent size; absent without such a codec.
          psnr_train: PSNR of up to TRAINING_SAMPLES training samples, always the same, with EMA parameters.
          dead_channels: number of latent channels that carry nothing, see `latent_metrics.dead_channels`.
          drift, psnr_start and so on: see `DriftMeter.scores`; absent in a run that starts from scratch.
          samples: number of samples.
          files: number of distinct files that they come from.
          spread_encoder_level_N, spread_decoder_level_N: the largest `metrics.activation_spread` of any batch
            at level N, with the EMA parameters.

        Args:
          average: EMA parameters, a dictionary with 'autoencoder' and 'likelihood'.
          params: raw parameters, a dictionary like `average`.

        Raises:
          Stopped: if `stopping` returns True.
        """
        scores = {}
        for bucket in self._buckets:
            of_bucket = self._evaluate_bucket(bucket, average, params)
            scores |= {f"{bucket.name}/{name}": value for name, value in of_bucket.items()}
        for name in SCORES:
            values = [value for key, value in scores.items() if key.split("/")[1] == name]
            if values:
                scores[f"mean/{name}"] = float(np.mean(values))
        return scores

    def announcement(self) -> str:
        """One line for the console that announces `evaluate`."""
        count, fitted_to = self._config.eval.samples, self._config.eval.linear_samples
        fits = fitted_to and any(bucket.name not in self._linear for bucket in self._buckets)
        fit = f", after fitting its linear codec to {fitted_to} training samples" if fits else ""
        return f"evaluating {count_of(count, 'held-out sample')} of each bucket{fit} ..."

    def table(self, step: int, scores: Mapping[str, float], changes: Mapping[str, str] | None = None) -> str:
        """The main scores for the console, with the gain over the linear codec and the drift of the latents.

        Args:
          step: number of updates done.
          scores: result of `evaluate`.
          changes: change of each bucket's PSNR since earlier evaluations, in words; see `rundir.verdict`.
        """
        lines = [f"evaluation at step {step}: EMA parameters (raw parameters)"]
        for bucket in self._buckets:
            lines += self._rows(bucket.name, scores, (changes or {}).get(bucket.name, ""))
        few = [name for name, files in self._files.items() if files < sources.FEW_FILES]
        if few and not self._warned:
            self._warned = True
            lines.append(
                f"  note: few held-out files in {', '.join(few)}: scores may not be representative;"
                " add files or raise data.holdout"
            )
        return "\n".join(lines)

    def panels(self, average: dict) -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray | None]]:
        """Reconstructions of the first samples of every bucket.

        Yields:
          The bucket's name, the originals, their reconstructions with the EMA parameters, and their
          reconstructions by the linear codec (None if `evaluate` has not fitted it). Arrays are (N, T, H, W,
          C) uint8.

        Raises:
          Stopped: if `stopping` returns True.
        """
        for bucket in self._buckets:
            shown, pairs = self._config.panels.samples, []
            for batch, frames in self._batches(bucket):
                decoded = np.asarray(self._score(average, self._lpips, frames)[2])
                pairs += zip(batch.frames, decoded, strict=False)
                if len(pairs) >= shown:
                    break
            if pairs:
                original, reconstruction = map(np.stack, zip(*pairs[:shown], strict=True))
                codec = self._linear.get(bucket.name)
                linear = to_uint8(codec.reconstruct(original)) if codec else None
                yield bucket.name, original, reconstruction, linear

    def _rows(self, bucket: str, scores: Mapping[str, float], change: str) -> list[str]:
        def get(name: str) -> float:
            return scores.get(f"{bucket}/{name}", float("nan"))

        if f"{bucket}/psnr" not in scores:
            return [f"  {bucket:20} not evaluated: {self._missing.get(bucket, 'no held-out sample')}"]
        row = f"  {bucket:20} psnr {get('psnr'):.2f} ({get('psnr_raw'):.2f}) dB"
        if f"{bucket}/psnr_linear" in scores:
            gain = get("psnr") - get("psnr_linear")
            row += f", {gain:+.2f} dB vs linear codec ({get('psnr_linear'):.2f})"
        others = (
            f"  {'':20} ssim {get('ssim'):.4f} ({get('ssim_raw'):.4f})  lpips {get('lpips_alexnet'):.3f}"
            f"  nll {get('nll'):+.3f}  kl {get('kl'):.3f}"
            f"  {get('samples'):.0f} samples of {count_of(int(get('files')), 'file')}"
        )
        rows = [f"{row}, {change}" if change else row, others]
        if f"{bucket}/psnr_alpha" in scores:
            rows.append(
                f"  {'':20} rgb {get('psnr_rgb'):.2f} ({get('psnr_rgb_raw'):.2f})"
                f"  alpha {get('psnr_alpha'):.2f} ({get('psnr_alpha_raw'):.2f}) dB"
            )
        if f"{bucket}/drift" in scores:
            drift = (
                f"  {'':20} drift {get('drift'):.4f} (shift {get('drift_shift'):.4f}, scale"
                f" {get('drift_scale'):.4f})  start {get('psnr_start'):.2f} dB"
            )
            if f"{bucket}/psnr_old_decoder" in scores:
                drift += (
                    f"  old decoder {get('psnr_old_decoder'):.2f} dB"
                    f"  old latents {get('psnr_old_latents'):.2f} dB"
                )
            rows.append(drift)
        return rows

    def _evaluate_bucket(self, bucket: Bucket, average: dict, raw: dict) -> dict[str, float]:
        values: dict[str, list[np.ndarray]] = {}
        spreads: dict[str, float] = {}
        linear, samples, files = [], 0, set()
        total = -(-self._config.eval.samples // bucket.at_once)
        for batch, frames in self._with_bar(self._batches(bucket), f"evaluating {bucket.name}", total):
            count = len(batch.frames)
            for suffix, params in (("", average), ("_raw", raw)):
                networks = {} if suffix else self._lpips
                scores, spread, _ = self._score(params, networks, frames)
                for name, value in scores.items():
                    values.setdefault(name + suffix, []).append(np.asarray(value)[:count])
                if not suffix:
                    spreads = {k: max(float(v), spreads.get(k, 0.0)) for k, v in spread.items()}
            if self._drift and self._drift.needs(bucket.name):
                self._drift.add(average["autoencoder"], frames, count)
            samples += count
            files |= {name.rpartition("@")[0] for name in batch.names}
            if codec := self._linear_codec(bucket):
                linear.append(psnr_linear(codec, batch.frames) * count)
        if not samples:
            return {}
        self._files[bucket.name] = len(files)
        means = {name: np.concatenate(parts).mean(0) for name, parts in values.items()}
        result = {name: float(mean) for name, mean in means.items() if not mean.ndim}
        if "latent" in means:
            mean, square = means["latent"].astype(np.float64), means["latent_square"]
            result["dead_channels"] = int(dead_channels(np.sqrt(np.maximum(square - mean**2, 0))).sum())
        if linear:
            result["psnr_linear"] = sum(linear) / samples
        if self._drift:
            result |= self._drift.scores(bucket.name)
        result |= self._score_training(bucket, average)
        return result | spreads | {"samples": samples, "files": len(files)}

    def _score_training(self, bucket: Bucket, average: dict) -> dict[str, float]:
        """The score 'psnr_train'; {} if the training samples can no longer be read."""
        count = min(self._config.eval.samples, TRAINING_SAMPLES)
        sampler = Sampler(self._sources, bucket, "train", self._config.data, self._config.seed)
        batches = pipeline.read_batches(sampler, count, bucket.at_once)
        values = []
        try:
            for batch, frames in self._on_mesh(
                bucket, distributed.lockstep(batches, lambda batch: batch.frames)
            ):
                scores, _, _ = self._score(average, {}, frames)
                values.append(np.asarray(scores["psnr"])[: len(batch.frames)])
        except InputError:  # training itself will report the files
            return {}
        return {"psnr_train": float(np.concatenate(values).mean())} if values else {}

    def _linear_codec(self, bucket: Bucket) -> LinearCodec | None:
        """The linear codec fitted to the bucket's training samples.

        None if eval.linear_samples is 0 or the codec cannot be fitted.
        """
        count = self._config.eval.linear_samples
        if count and bucket.name not in self._linear:
            frames = distributed.lockstep(
                pipeline.train_samples(self._sources, bucket, self._config.data, count, self._config.seed)
            )
            frames = self._with_bar(frames, f"fitting the linear codec of {bucket.name}", count)
            try:
                codec = LinearCodec.fit(frames, self._channels, *self._factors)
            except InputError as error:
                codec = None
                if self._is_main:
                    print(f"{bucket.name}: no comparison with the linear codec: {error}", file=sys.stderr)
            self._linear[bucket.name] = codec
        return self._linear.get(bucket.name)

    def _batches(self, bucket: Bucket) -> Iterator[tuple[Batch, jax.Array]]:
        """Held-out batches, and their frames on the mesh, padded with copies to `bucket.at_once`."""
        return self._on_mesh(bucket, self._held_out(bucket))

    def _on_mesh(self, bucket: Bucket, batches: Iterable[Batch]) -> Iterator[tuple[Batch, jax.Array]]:
        """Batches, and their frames on the mesh, padded with copies to `bucket.at_once`."""
        for batch in batches:
            if self._stopping():
                raise Stopped
            padded = batch.frames[np.arange(bucket.at_once) % len(batch.frames)]
            yield batch, sharding.shard_batch(self._mesh, padded)

    def _held_out(self, bucket: Bucket) -> Iterator[Batch]:
        """Held-out batches, the same on every process. If there are none, `table` will show the reason."""
        settings = self._config.data
        batches = pipeline.eval_batches(
            self._sources, bucket, settings, self._config.eval.samples, bucket.at_once
        )
        empty = True
        try:
            for batch in distributed.lockstep(batches, lambda batch: batch.frames):
                empty = False
                yield batch
        except InputError as error:
            self._missing[bucket.name] = str(error)
            if self._is_main:
                print(f"{bucket.name} is not evaluated: {error}", file=sys.stderr)
            return
        if empty and bucket.name not in self._missing:
            reason = sources.nothing_fits(self._sources, bucket, "eval", settings)
            reason = reason.removeprefix(f"data.buckets.{bucket.name}: ").partition("; accepted")[0]
            self._missing[bucket.name] = reason

    def _with_bar(self, items: Iterable[T], label: str, total: int) -> Iterable[T]:
        """The items, with a progress bar on the main process if its stderr is a terminal."""
        disable = None if self._is_main else True
        return tqdm(items, label, total, leave=False, file=sys.stderr, disable=disable)


def scoring(config: "Config", model: Autoencoder, objective: Objective, mesh: Mesh) -> Any:
    """Returns `score` as a program for the devices of a mesh, which takes (params, lpips_params, frames)."""

    def placed(*arguments):
        with sharding.placing_frames(mesh):
            return score(*arguments, model=model, objective=objective, shown=config.panels.samples)

    return jax.jit(placed, out_shardings=sharding.replicated(mesh))


def score(
    params: dict,
    lpips_params: Mapping[str, dict],
    frames: jax.Array,
    *,
    model: Autoencoder,
    objective: Objective,
    shown: int,
) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
    """Encodes a batch, decodes the posterior mean, and scores the reconstruction.

    Before scoring, the reconstruction is clipped to [-1, 1], except for 'nll'.

    Args:
      params: dictionary with 'autoencoder', the parameters of the model, and 'likelihood', which has
        'log_scale'.
      lpips_params: parameters of the LPIPS networks, by name.
      frames: (B, T, H, W, C) uint8.
      model: the autoencoder.
      objective: training objective, which computes 'nll' and 'kl'.
      shown: number of reconstructions to return.

    Returns:
      A tuple of three:
      - scores by name, (B,): 'psnr' in dB, the scores of `metrics.psnr_of_parts`, 'ssim' and 'spots', means
        over frames; 'nll' and 'kl', see `Objective.likelihood_terms`; 'lpips_NETWORK', the mean over at most
        LPIPS_FRAMES frames, absent for frames too small for LPIPS; and 'flicker', absent for images. 'latent'
        and 'latent_square', (B, c), are the means of the posterior mean and of its square in each channel;
      - the scalar `metrics.activation_spread` of each level, by name: 'spread_encoder_level_N' or
        'spread_decoder_level_N';
      - the first reconstructions, (shown, T, H, W, C) uint8.
    """
    x = from_uint8(frames)
    variables = {"params": params["autoencoder"]}
    posterior, encoder = _applied(model, variables, x, method="encode")
    x_hat, decoder = _applied(model, variables, posterior.mean, x.shape[1] > 1, method="decode")
    terms = objective.likelihood_terms(x, x_hat, posterior, params["likelihood"]["log_scale"])
    x_hat = jnp.clip(x_hat, -1, 1)
    psnr = {"psnr": metrics.psnr(x, x_hat)} | metrics.psnr_of_parts(x, x_hat)
    scores = {name: getattr(metrics, name)(x, x_hat).mean(1) for name in ("ssim", "spots")}
    scores |= {name: jnp.minimum(value, metrics.PSNR_CEILING).mean(1) for name, value in psnr.items()}
    scores |= terms
    scores |= {
        "latent": posterior.mean.mean((1, 2, 3)),
        "latent_square": jnp.square(posterior.mean).mean((1, 2, 3)),
    }
    if x.shape[1] > 1:
        scores["flicker"] = metrics.flicker(x, x_hat)
    if min(x.shape[2:4]) >= lpips.SMALLEST:
        seen = np.linspace(0, x.shape[1] - 1, min(x.shape[1], LPIPS_FRAMES)).round().astype(int)
        original, decoded = (y[:, seen].reshape(-1, *y.shape[2:]) for y in (x, x_hat))
        for network, weights in lpips_params.items():
            distances = lpips.lpips(weights, original, decoded, network)
            scores[f"lpips_{network}"] = distances.reshape(len(x), -1).mean(1)
    spreads = {
        f"spread_{half}_{level}": metrics.activation_spread(norm[..., None])
        for half, levels in (encoder | decoder).items()
        for level, norm in levels.items()
    }
    return scores, spreads, to_uint8(x_hat[:shown])


def _applied(model: Autoencoder, variables: dict, *inputs: Any, method: str) -> tuple[Any, dict[str, dict]]:
    """Runs a model method; returns its result and {'encoder' or 'decoder': {'level_N': activation norms}}."""
    result, state = model.apply(variables, *inputs, method=method, mutable="activations")
    return result, dict(state)["activations"]
