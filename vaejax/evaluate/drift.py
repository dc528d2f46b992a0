"""Drift: how far a model's latents have left those of the model that it started from."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from vaejax.codec.load import TrainedVAE
from vaejax.evaluate import metrics
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.pixels import from_uint8
from vaejax.runtime import mesh as sharding


class DriftMeter:
    """Compares a model with the one that it started from, or with its teacher, on samples of one bucket.

    All latents are means of the posterior. If the encoder is frozen, the same samples always have the same
    scores, so each bucket is measured once.

    Args:
      model: the autoencoder that trains.
      known: the model that it started from, or its teacher.
      trains_encoder: whether the encoder trains. If not, the cross-decode scores are those of the decoders.
      mesh: mesh of the run.
    """

    def __init__(self, model: Autoencoder, known: TrainedVAE, trains_encoder: bool, mesh: Mesh):
        self._compare = comparing(model, known, trains_encoder, mesh)
        self._params = sharding.replicate(mesh, known.params)
        self._values: dict[str, list[np.ndarray]] = {}
        self._kept: dict[str, dict[str, float]] | None = None if trains_encoder else {}

    def needs(self, bucket: str) -> bool:
        """Whether the samples of a bucket must be added before its `scores`."""
        return self._kept is None or bucket not in self._kept

    def add(self, params: dict, frames: UInt8[Array, "B T H W C"], count: int) -> None:
        """Adds the first `count` samples of a batch, encoded with the model's parameters `params`."""
        for name, value in self._compare(params, self._params, frames).items():
            self._values.setdefault(name, []).append(np.asarray(value)[:count])

    def scores(self, bucket: str) -> dict[str, float]:
        """Returns the scores of the samples of a bucket that were added since the last call.

        drift: root mean square distance of the latents, in standard deviations of each channel.
        drift_shift: root mean square difference of the channel means, in the same units.
        drift_scale: standard deviation of a channel relative to that of the old latents, averaged.
        psnr_start: PSNR in dB of the model that this one started from.
        psnr_old_decoder: PSNR of the new latents, decoded by the old decoder.
        psnr_old_latents: PSNR of the old latents, decoded by the new decoder. If the encoder is frozen, this
          score and psnr_old_decoder are absent.
        """
        if self._kept is not None and bucket in self._kept:
            return self._kept[bucket]
        means = {
            name: np.concatenate(parts).astype(np.float64).mean(0) for name, parts in self._values.items()
        }
        self._values = {}
        old, new = ((means[name], means[f"{name}_square"]) for name in ("old", "new"))
        variance = np.maximum(old[1] - old[0] ** 2, 0)
        variance = np.maximum(variance, 1e-6 * variance.mean() + 1e-30)  # a dead channel has no scale
        drift = {
            "drift": np.sqrt((means["distance"] / variance).mean()),
            "drift_shift": np.sqrt(((new[0] - old[0]) ** 2 / variance).mean()),
            "drift_scale": np.sqrt(np.maximum(new[1] - new[0] ** 2, 0) / variance).mean(),
        }
        psnr = {name: value for name, value in means.items() if name.startswith("psnr")}
        scores = {name: float(value) for name, value in (drift | psnr).items()}
        if self._kept is not None:
            self._kept[bucket] = scores
        return scores


def comparing(model: Autoencoder, known: TrainedVAE, trains_encoder: bool, mesh: Mesh) -> Any:
    """Returns `compare` as a program for the devices of a mesh, which takes (params, start_params, frames).

    The other arguments are those of `DriftMeter`.
    """
    start = Autoencoder(known.architecture.replace(remat=(), dtype=model.architecture.dtype))

    def placed(*arguments):
        with sharding.placing_frames(mesh):
            return compare(*arguments, model=model, start=start, cross=trains_encoder)

    return jax.jit(placed, out_shardings=sharding.replicated(mesh))


def compare(
    params: dict,
    start_params: dict,
    frames: UInt8[Array, "B T H W C"],
    *,
    model: Autoencoder,
    start: Autoencoder,
    cross: bool,
) -> dict[str, Float[Array, "B ..."]]:
    """Encodes a batch with both models; decodes with the old decoder and, if `cross`, each other's latents.

    Returns:
      Per sample: 'new' and 'old', the means (B, c) of each latent channel, 'new_square' and 'old_square', the
      means of their squares, 'distance', the mean of their squared difference; and PSNRs (B,) in dB.
    """
    x = from_uint8(frames)
    new, old = (
        _applied(one, weights, x, "encode", x.shape[1]).mean
        for one, weights in ((model, params), (start, start_params))
    )

    def psnr(one: Autoencoder, weights: dict, z: jax.Array) -> jax.Array:
        x_hat = jnp.clip(_applied(one, weights, z, "decode", x.shape[1]), -1, 1)
        return jnp.minimum(metrics.psnr(x, x_hat), metrics.PSNR_CEILING).mean(1)

    scores = {"psnr_start": psnr(start, start_params, old)}
    if cross:
        scores["psnr_old_decoder"] = psnr(start, start_params, new)
        scores["psnr_old_latents"] = psnr(model, params, old)
    moments = {"new": new, "new_square": jnp.square(new), "old": old, "old_square": jnp.square(old)}
    moments["distance"] = jnp.square(new - old)
    return scores | {name: value.mean((1, 2, 3)) for name, value in moments.items()}


def _applied(model: Autoencoder, params: dict, x: jax.Array, method: str, frames: int) -> Any:
    return model.apply({"params": params}, x, frames > 1, method=method)
