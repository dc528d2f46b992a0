"""What a configuration accepts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from vaejax import probe
from vaejax.config.schema import OPEN_SECTIONS, architecture, defaults, get, unknown_key
from vaejax.errors import InputError
from vaejax.evaluate.during_training import SCORES
from vaejax.losses.adversarial import LOSSES
from vaejax.losses.objective import LIKELIHOODS, NORMALIZATIONS
from vaejax.models.autoencoder import SIZES
from vaejax.networks.lpips import NETWORKS, SMALLEST
from vaejax.probe.presets import PRESETS

_POSITIVE = (lambda v: 0 < v < math.inf, "a finite number above 0")
_NATURAL = (lambda v: isinstance(v, int) and v >= 0, "a whole number from 0")
_COUNT = (lambda v: isinstance(v, int) and v >= 1, "a whole number from 1")
_FROM_0 = (lambda v: 0 <= v < math.inf, "a finite number from 0")
_SHARE = (lambda v: 0 <= v < 1, "a number from 0 to below 1")
_ANY_WIDTHS = (
    lambda v: all(isinstance(w, int) and w >= 1 for w in v),
    "whole numbers from 1, or () for the size's",
)


def _one_of(*values) -> tuple[Callable[[Any], bool], str]:
    return (lambda v: v in values), "one of " + ", ".join(map(repr, values))


ACCEPTED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (lambda v: isinstance(v, int) and 0 <= v < 2**31, "a whole number from 0 to below 2**31"),
    "steps": _COUNT,
    "log_every": _COUNT,
    "data.fps": _POSITIVE,
    "data.zoom": (lambda v: 1 <= v < math.inf, "a finite number from 1"),
    "data.max_upscale": _POSITIVE,
    "data.min_quality": (lambda v: 0 <= v <= 100, "0 to 100"),
    "data.holdout": _SHARE,
    "data.workers": _NATURAL,
    "data.prefetch": _COUNT,
    "model.size": _one_of(*SIZES),
    "model.widths": _ANY_WIDTHS,
    "model.encoder_blocks": _NATURAL,
    "model.decoder_blocks": _NATURAL,
    "model.stem": _one_of("haar", "patch"),
    "model.stem_factor": _one_of(0, 1, 2, 4),
    "model.latent_channels": _COUNT,
    "model.spatial_factor": _one_of(4, 8, 16),
    "model.temporal_factor": _one_of(1, 2, 4, 8),
    "model.conv": _one_of("smc", "groupnorm"),
    "model.remat": (
        lambda v: all(isinstance(i, int) and i >= 0 for i in v),
        "a tuple of levels, 0 the highest resolution",
    ),
    "model.dtype": _one_of("float32", "bfloat16"),
    "loss.likelihood": _one_of(*LIKELIHOODS),
    "loss.normalization": _one_of(*NORMALIZATIONS),
    "loss.reference": (lambda v: len(v) == 3 and min(v) >= 1, "three sizes (T, H, W) from 1"),
    "loss.perceptual.network": _one_of(*NETWORKS),
    "loss.perceptual.start": _NATURAL,
    "loss.perceptual.frames": _COUNT,
    "loss.perceptual.side": (
        lambda v: v == 0 or v >= SMALLEST,
        f"0 (whole frames) or a whole number from {SMALLEST}",
    ),
    "loss.adversarial.loss": _one_of(*LOSSES),
    "loss.adversarial.discriminators": (
        lambda v: 0 < len(v) == len(set(v)) and set(v) <= {"image", "video"},
        "('image', 'video') or one of them",
    ),
    "loss.adversarial.kind": _one_of("patch", "unet"),
    "loss.adversarial.width": _COUNT,
    "loss.adversarial.learning_rate": _POSITIVE,
    "loss.adversarial.b1": _SHARE,
    "loss.adversarial.b2": _SHARE,
    "loss.adversarial.start": _NATURAL,
    "loss.adversarial.warmup": _NATURAL,
    "loss.adversarial.ramp": _COUNT,
    "loss.adversarial.adaptive": _FROM_0,
    "loss.adversarial.lecam": _FROM_0,
    "loss.adversarial.r1": _FROM_0,
    "loss.adversarial.frames": _COUNT,
    "loss.adversarial.pause_above": (lambda v: 0.5 < v <= 1, "a number above 0.5, up to 1"),
    "loss.latent.outlier_radius": _POSITIVE,
    "loss.latent.correlation": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "loss.latent.scales": (
        lambda v: len(v) > 0 and all(0 < s <= 1 for s in v),
        "numbers above 0, up to 1, at least one",
    ),
    "loss.latent.mask": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "recovery.bad_steps": _COUNT,
    "recovery.rollbacks": _NATURAL,
    "recovery.stall": _FROM_0,
    "optim.learning_rate": _POSITIVE,
    "optim.schedule": _one_of("cosine", "constant"),
    "optim.warmup": _NATURAL,
    "optim.final_fraction": (lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    "optim.b1": _SHARE,
    "optim.b2": _SHARE,
    "optim.weight_decay": _FROM_0,
    "optim.agc": _FROM_0,
    "ema.decay": _SHARE,
    "mesh.data": _NATURAL,
    "mesh.fsdp": _COUNT,
    "mesh.space": _COUNT,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "eval.every": _COUNT,
    "eval.samples": _COUNT,
    "eval.linear_samples": _NATURAL,
    "eval.latent_samples": _NATURAL,
    "probe.every": _NATURAL,
    "probe.preset": _one_of(*PRESETS),
    "probe.seeds": _COUNT,
    "panels.every": _COUNT,
    "panels.samples": _COUNT,
    "profile": (
        lambda v: len(v) == 2 and all(isinstance(n, int) and n >= 0 for n in v),
        "(FIRST, COUNT), two whole numbers from 0",
    ),
}


def check(config: ConfigDict) -> None:
    """Raises InputError, naming the key, its value and what is accepted, at the first value that will not do.

    Buckets are checked where they are parsed (data/bucket.py), the mesh where it is made (mesh.py).
    """
    known = defaults()
    _check_keys(config, known)
    for key, (accepts, accepted) in ACCEPTED.items():
        value = get(config, key)
        try:
            good = accepts(value)
        except TypeError:
            good = False
        if not good:
            raise InputError(f"{key} = {value!r}; accepted: {accepted}")
    for term, weight in config.loss.weights.items():
        if not (isinstance(weight, (int, float)) and math.isfinite(weight) and weight >= 0):
            raise InputError(f"loss.weights.{term} = {weight!r}; accepted: a finite number from 0")
    game = config.loss.adversarial
    if config.loss.weights.adversarial and game.warmup > game.start:
        raise InputError(
            f"loss.adversarial.warmup = {game.warmup}; accepted: at most loss.adversarial.start ="
            f" {game.start}: so long the discriminators learn before they count"
        )
    a = architecture(config.model)
    if a.spatial_factor % a.stem_factor:
        raise InputError(f"model.stem_factor = {a.stem_factor}; accepted: divisors of {a.spatial_factor}")
    if max(a.remat, default=0) > len(a.strides):
        raise InputError(f"model.remat = {a.remat}; accepted: levels 0 to {len(a.strides)}")
    buckets = [name for name, fields in config.data.buckets.items() if fields.get("batch")]
    if config.probe.bucket and config.probe.bucket not in buckets:
        raise InputError(
            f"probe.bucket = {config.probe.bucket!r}; accepted: '' or one of {', '.join(buckets)}"
        )
    _check_best(config, buckets)
    if not a.widths or not a.encoder_blocks or not a.decoder_blocks:
        raise InputError("model.widths and blocks; accepted: at least one of each")
    if a.latent_channels > 3 * a.spatial_factor**2:
        raise InputError(
            f"model.latent_channels = {a.latent_channels}; accepted: at most {3 * a.spatial_factor**2}"
        )


def _check_best(config: ConfigDict, buckets: Sequence[str]) -> None:
    """checkpoint.best must be a number that is there when a checkpoint is saved."""
    best = config.checkpoint.best
    if not best:
        return
    scores = {bucket: _evaluated(config, bucket) for bucket in buckets}
    scores["mean"] = [name for name in SCORES if any(name in names for names in scores.values())]
    known = [f"{bucket}/{name}" for bucket, names in scores.items() for name in names]
    probed = [f"{config.probe.bucket or buckets[0]}/{name}" for name in probe.SCORES if config.probe.every]
    name = best.removeprefix("-")
    if name not in known + probed:
        raise InputError(
            f"checkpoint.best = {best!r}; accepted: '' or BUCKET/NAME, '-' before it where lower is better,"
            f" BUCKET one of mean, {', '.join(buckets)} and NAME one of {', '.join(scores['mean'])} where the"
            " bucket has it"
            + (f"; or {', '.join(probed)}" if probed else "; with probe.every, BUCKET/probe_kernel")
        )
    key = "probe.every" if name in probed else "eval.every"
    every, saved = get(config, key), config.checkpoint.every
    if every % saved and saved % every:
        raise InputError(
            f"{key} = {every} with checkpoint.best = {best!r}; accepted: a multiple or a divisor of"
            f" checkpoint.every = {saved}, so that checkpoints have the number"
        )


def _evaluated(config: ConfigDict, bucket: str) -> list[str]:
    """The names of SCORES that evaluation gives of a bucket."""
    networks = {"alexnet"} | ({config.loss.perceptual.network} if config.loss.weights.perceptual else set())
    sizes = [int(size) for size in re.findall(r"\d+", bucket)]
    missing = {
        f"lpips_{name}" for name in NETWORKS if name not in networks or min(sizes[-2:], default=0) < SMALLEST
    }
    missing |= set() if bucket.startswith("video_") else {"flicker"}
    return [name for name in SCORES if name not in missing]


def _check_keys(config: ConfigDict, known: ConfigDict, prefix: str = "") -> None:
    """Keys come from `defaults`; only the names of sources and buckets are a person's own."""
    for name in config:
        key = prefix + name
        if name not in known:
            raise InputError(unknown_key(key))
        if isinstance(known[name], ConfigDict) and key not in OPEN_SECTIONS:
            if not isinstance(config[name], ConfigDict):
                raise InputError(f"{key} = {config[name]!r}; accepted: the keys {', '.join(known[name])}")
            _check_keys(config[name], known[name], key + ".")
