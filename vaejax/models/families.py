"""The families of autoencoders, by the name that `model.family` takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vaejax.models.autoencoder import Architecture
from vaejax.models.design import Design
from vaejax.models.vaejax import VaejaxDesign
from vaejax.models.wan import WanDesign

FAMILIES: Mapping[str, type[Design]] = {"vaejax": VaejaxDesign, "wan": WanDesign}


def architecture_of(model: Any) -> Architecture:
    """The architecture that the section `model` of a configuration describes, with identical halves.

    Raises:
      InputError: if the settings do not fit together.
    """
    design = FAMILIES[model.family].of(model)
    return Architecture(design, design)


def architecture_of_run(config: Any, known: Architecture | None) -> Architecture:
    """The architecture that a whole configuration trains.

    Args:
      config: the configuration.
      known: architecture of the model config.init or config.teacher; None without one.

    Raises:
      InputError: if the settings do not fit together, or a half that learns from a teacher does not have the
        teacher's latents.
    """
    model = config.model
    if known and config.student:
        # The other half is the teacher's, but computes as the configuration says.
        student = FAMILIES[model.family].of(model)
        kept: Any = known.encoder if config.student == "decoder" else known.decoder
        remat = tuple(level for level in model.remat if level < kept.levels)
        kept = dataclasses.replace(kept, dtype=model.dtype, remat=remat)
        return Architecture(*((kept, student) if config.student == "decoder" else (student, kept)))
    if known and not model.family:
        return known.replace(remat=model.remat, dtype=model.dtype, pixel_channels=model.pixel_channels)
    return architecture_of(model)


def to_json(architecture: Architecture) -> dict[str, Any]:
    """The fields of an architecture, for JSON; of identical halves only one is listed."""
    encoder, decoder = map(_design_to_json, (architecture.encoder, architecture.decoder))
    return encoder if encoder == decoder else {"encoder": encoder, "decoder": decoder}


def from_json(saved: Mapping[str, Any], defaults: Any) -> Architecture:
    """The architecture that `to_json` described, in any version of vaejax.

    Args:
      saved: result of `to_json`; unknown keys are ignored.
      defaults: object with the values of missing keys, the section `model` of a configuration.

    Raises:
      KeyError, TypeError, ValueError: if `saved` does not describe an architecture.
    """
    halves = (saved["encoder"], saved["decoder"]) if "encoder" in saved else (saved, saved)
    return Architecture(*(_design_from_json(half, defaults) for half in halves))


def _design_to_json(design: Design) -> dict[str, Any]:
    family = next(name for name, kind in FAMILIES.items() if isinstance(design, kind))
    fields: Any = design
    return {"family": family, **dataclasses.asdict(fields)}


def _design_from_json(saved: Mapping[str, Any], defaults: Any) -> Design:
    kind: Any = FAMILIES[saved.get("family", "vaejax")]
    values = {}
    for field in dataclasses.fields(kind):
        value = saved[field.name] if field.name in saved else getattr(defaults, field.name)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)
