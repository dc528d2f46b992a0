"""Objectives, and adversaries (discriminators and their losses), with defaults except what a test sets."""

import dataclasses

import optax

from vaejax.config.schema import defaults
from vaejax.losses.adversarial import Adversary
from vaejax.losses.latent import LatentSettings
from vaejax.losses.objective import Objective
from vaejax.models.discriminator import Discriminator, DiscriminatorDesign


def objective(weights: dict[str, float] | None = None, **settings) -> Objective:
    """Returns an objective with only these weights (default: reconstruction 1, KL 1e-6)."""
    weights = {"reconstruction": 1.0, "kl": 1e-6} if weights is None else weights
    return dataclasses.replace(Objective.of(defaults()), weights=weights, **settings)


def latent_settings(**settings) -> LatentSettings:
    """Returns the settings of the latent terms."""
    return dataclasses.replace(LatentSettings.of(defaults().loss.latent), **settings)


def discriminator(name: str = "image", **design) -> Discriminator:
    """Returns the discriminator 'image' or 'video', 8 channels wide unless `design` says otherwise."""
    settings = defaults().loss.adversarial
    design = {"kind": settings.kind, "width": 8, "spectral_norm": settings.spectral_norm} | design
    return Discriminator(DiscriminatorDesign(**design), temporal=name == "video")


def adversary(names=("image",), width: int = 8, optimizer=None, **settings) -> Adversary:
    """Returns an adversary with small discriminators of these names, trained by Adam at 1e-3 by default."""
    config = defaults()
    config.loss.weights.adversarial = 1.0
    return dataclasses.replace(
        Adversary.of(config, ()),
        discriminators={name: discriminator(name, width=width) for name in names},
        optimizer=optimizer or optax.adam(1e-3),
        **settings,
    )
