"""The probe during training: it scores the latents of the averaged (EMA) parameters."""

import sys
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from vaejax.config import Config
from vaejax.data.bucket import Bucket
from vaejax.data.table import Source
from vaejax.errors import InputError, Stopped
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.features import Features
from vaejax.models.autoencoder import Autoencoder
from vaejax.networks import weights
from vaejax.probe import SCORES
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import Media
from vaejax.probe.score import Probe
from vaejax.rundir.panels import sample_grid


class TrainingProbe:
    """The probe that config.probe sets up. It scores one bucket with the same samples and seeds each time.

    All devices encode and decode. Each process fits the same model on one of its devices.

    Args:
      sources: data sources of the run, opened.
      buckets: buckets of the run.
      config: configuration of the run; its data.fps, data.zoom and data.holdout replace those of the preset.
      model: the autoencoder of the run.
      mesh: device mesh of the run.
      stopping: function called regularly, in lockstep on all processes; if it returns True, the probe stops.

    Attributes:
      bucket: the bucket that is scored.

    Raises:
      InputError: if the bucket has no training or no held-out samples, or the patch size of the transformer
        does not divide the height and width of the bucket's latents.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        buckets: Sequence[Bucket],
        config: Config,
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
                f"probe.bucket = {self.bucket.name!r}: its latents are {h}x{w}; accepted: a bucket whose"
                f" latent sides are multiples of {self._preset.patch} (probe.preset = {settings.preset!r})"
            )

    def evaluate(self, average: dict) -> tuple[dict[str, float], np.ndarray | None]:
        """Scores the averaged (EMA) parameters of the autoencoder, average['autoencoder'].

        Returns:
          The scores {'BUCKET/NAME': value} for each NAME in SCORES, and a picture of samples, (height, width,
          3) uint8; or ({}, None) if the probe is stopped or fails, or a score is NaN. A failure also prints a
          message to stderr.
        """
        codec = self._codec
        codec.load(average["autoencoder"])
        values, picture = np.full(len(SCORES), np.nan), None
        try:
            if self._probe is None:  # made once, so that it keeps the features of the real samples
                is_main = jax.process_index() == 0
                self._probe = Probe(
                    self._media, self._preset, Features(), progress=is_main, stopping=self._stopping
                )
            scores, shown = self._probe.score(self._probe.latents(codec), codec.decode, self._seeds)
            values = np.array([scores[name.removeprefix("probe_")]["mean"] for name in SCORES])
            picture = sample_grid(shown)
        except Stopped:
            pass
        except (InputError, weights.BadWeights) as error:  # a failed probe must not end the run
            print(f"{self.bucket.name} is not probed: {error}", file=sys.stderr)
        finally:
            codec.load({})  # frees the copy of the parameters until the next probe
        if jax.process_count() > 1:  # all processes must agree on the best checkpoint
            values = multihost_utils.broadcast_one_to_all(values)
        if np.isnan(values).any():
            return {}, None
        names = (f"{self.bucket.name}/{name}" for name in SCORES)
        return dict(zip(names, values.tolist(), strict=True)), picture

    def line(self, step: int, scores: dict[str, float]) -> str:
        """One line for the console with the scores."""
        shown = "  ".join(
            f"{name.removeprefix('probe_')} {scores[f'{self.bucket.name}/{name}']:.4f}" for name in SCORES
        )
        return f"probe at step {step}: {self.bucket.name}  {shown}"
