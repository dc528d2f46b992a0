"""The probe while a run trains: what a small diffusion model learns on the averaged parameters' latents."""

import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vaejax.data.bucket import Bucket
from vaejax.errors import InputError, Stopped
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.features import Features
from vaejax.models.autoencoder import Autoencoder
from vaejax.networks import weights
from vaejax.probe import SCORES
from vaejax.probe.grid import grid
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import Media
from vaejax.probe.score import Probe


class TrainingProbe:
    """config.probe of a run: scores one bucket, again and again on the same samples and seeds.

    All devices encode and decode; every process fits the same model on one of its own.

    Args:
      sources: opened sources of the run.
      buckets: of the run.
      config: the run's, its preset's fps, zoom and holdout being those of config.data.
      model: the run's.
      mesh: on which the parameters lie.
      stopping: asked now and then, by all processes together, whether to give up.

    Raises:
      InputError: if the bucket has no held-out samples, or its latents are not whole patches.

    Attributes:
      bucket: the one that is scored.
    """

    def __init__(
        self,
        sources: Sequence,
        buckets: Sequence[Bucket],
        config: ConfigDict,
        model: Autoencoder,
        mesh: Mesh,
        stopping: Callable[[], bool],
    ):
        settings = config.probe
        self.bucket = next(b for b in buckets if b.name == (settings.bucket or buckets[0].name))
        self._media, self._seeds = Media(sources, self.bucket, config.data), range(settings.seeds)
        self._preset, self._codec = PRESETS[settings.preset], VaeCodec("run", model, {}, mesh=mesh)
        self._stopping, self._probe = stopping, None
        _, h, w, _ = model.architecture.latent_shape(
            self.bucket.frames, self.bucket.height, self.bucket.width
        )
        if h % self._preset.patch or w % self._preset.patch:
            raise InputError(
                f"probe.bucket = {self.bucket.name!r}: its latents are {h}x{w}; accepted with probe.preset ="
                f" {settings.preset!r}: multiples of {self._preset.patch}"
            )

    def evaluate(self, average: dict) -> tuple[dict[str, float], np.ndarray | None]:
        """Scores the averaged parameters, {'autoencoder': ...}.

        Returns:
          'BUCKET/NAME' to value, NAME of SCORES, and samples as a picture; nothing of either if it gave up
          or failed, which stderr tells.
        """
        codec = self._codec
        codec.load(average["autoencoder"])
        values, picture = np.full(len(SCORES), np.nan), None
        try:
            if self._probe is None:  # the networks and the real samples, once
                is_main = jax.process_index() == 0
                self._probe = Probe(
                    self._media, self._preset, Features(), progress=is_main, stopping=self._stopping
                )
            scores, shown = self._probe.score(self._probe.latents(codec), codec.decode, self._seeds)
            values = np.array([scores[name.removeprefix("probe_")]["mean"] for name in SCORES])
            picture = grid(shown)
        except Stopped:
            pass
        except (InputError, weights.BadWeights) as error:  # none must end a run
            print(f"{self.bucket.name} is not probed: {error}", file=sys.stderr)
        finally:
            codec.load({})  # until it is asked again its copy is in the run's way
        if jax.process_count() > 1:  # they keep the same best checkpoint
            values = multihost_utils.broadcast_one_to_all(values)
        if np.isnan(values).any():
            return {}, None
        names = (f"{self.bucket.name}/{name}" for name in SCORES)
        return dict(zip(names, values.tolist(), strict=True)), picture

    def line(self, step: int, scores: dict[str, float]) -> str:
        """The scores for people."""
        told = "  ".join(f"{name} {scores[f'{self.bucket.name}/{name}']:.4f}" for name in SCORES)
        return f"probe at step {step}: {self.bucket.name}  {told.replace('probe_', '')}"
