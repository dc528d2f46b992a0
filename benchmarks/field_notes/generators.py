"""The diffusion probe, for lessons about generation."""

import pathlib
from typing import Any

from benchmarks.field_notes.lab import Trained
from vaejax.config.schema import DataConfig
from vaejax.data import sources
from vaejax.data.bucket import parse_buckets
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.features import Features
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import Media
from vaejax.probe.score import Probe

HOLDOUT = 0.2


def judge(media: pathlib.Path, side: int, preset: str = "cpu") -> Probe:
    """A probe on square images of a folder."""
    data = DataConfig(media=str(media), zoom=1.5, holdout=HOLDOUT)
    (bucket,) = parse_buckets({f"image_{side}x{side}": {"batch": 1}}, 1, 1)
    return Probe(Media(sources.open_sources(data), bucket, data), PRESETS[preset], Features(), progress=True)


def score(probe: Probe, trained: Trained, seeds: int) -> dict[str, Any]:
    """Scores of a model's latents, see `Probe.score`."""
    codec = VaeCodec.open(str(trained.folder))
    return probe.score(probe.latents(codec), codec.decode, range(seeds))[0]
