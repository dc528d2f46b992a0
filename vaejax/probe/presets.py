"""Budgets of the probe: all that its scores depend on but the codec, the media and the seeds."""

import dataclasses
from collections.abc import Mapping

from vaejax.errors import InputError
from vaejax.probe.dit import ATTENTION

DTYPES = ("float32", "bfloat16")


def _is(meaning: str, default):
    return dataclasses.field(default=default, metadata={"help": meaning})


@dataclasses.dataclass(frozen=True)
class Preset:
    """A budget; what every field means is its 'help'. The defaults are the preset 'cpu'.

    Raises:
      InputError: naming the first field that cannot be used.
    """

    bucket: str = _is("shape of a sample, image_HxW or video_TxHxW", "image_64x64")
    fps: float = _is("of clips, resampled", 12.0)
    zoom: float = _is("a crop's scale is random, from just covering the bucket to so many times it", 4.0)
    # More than a run's own share: some tens of photos at least must stand for what is real.
    holdout: float = _is("share of a folder that is not learned from, but compared with", 0.2)
    train_samples: int = _is("samples that are encoded and learned from", 4096)
    samples: int = _is("samples that are generated, and held-out ones to compare them with", 256)
    width: int = _is("channels of a token", 128)
    depth: int = _is("blocks of the transformer", 4)
    heads: int = _is("of its attention", 4)
    patch: int = _is("latent pixels a token, each way: 1 or 2", 1)
    attention: str = _is("full, or factorised: along space and along time in turn", "full")
    dtype: str = _is("compute dtype of the transformer, float32 or bfloat16", "float32")
    steps: int = _is("updates", 600)
    batch: int = _is("samples an update", 16)
    learning_rate: float = _is("of Adam, constant after the warm-up", 2e-3)
    warmup: int = _is("updates in which it grows from 0", 30)
    ema: float = _is("decay of the average of the parameters, which is what generates", 0.98)
    solver_steps: int = _is("of Heun's method from noise to sample, two evaluations each", 16)

    def __post_init__(self):
        accepted = {
            "fps": (self.fps > 0, "a number above 0"),
            "zoom": (self.zoom >= 1, "a number from 1"),
            "holdout": (0 < self.holdout < 1, "a share between 0 and 1"),
            "samples": (self.samples > 1, "a whole number from 2"),
            "width": (not self.width % 4 and not self.width % self.heads, "a multiple of 4 and of heads"),
            "attention": (self.attention in ATTENTION, ", ".join(ATTENTION)),
            "dtype": (self.dtype in DTYPES, ", ".join(DTYPES)),
            "ema": (self.ema < 1, "a number below 1"),
        }
        for name, (good, what) in accepted.items():
            if not good:
                raise InputError(f"{name} = {getattr(self, name)}; accepted: {what}")


PRESETS: Mapping[str, Preset] = {
    # Three seeds in some minutes on two cores. At equal cost 600 updates of 16 samples leave a lower held-out
    # loss than 300 of 32 (1.007 against 1.032, learning rate 2e-3).
    "cpu": Preset(),
    # DiT-S/2 of 256 tokens for images of 256x256: about 25 PFLOP a seed.
    "gpu": Preset(
        bucket="image_256x256",
        fps=24.0,
        zoom=1.0,
        train_samples=20_000,
        samples=2_000,
        width=384,
        depth=12,
        heads=6,
        patch=2,
        dtype="bfloat16",
        steps=5_000,
        batch=128,
        learning_rate=5e-4,
        warmup=200,
        ema=0.998,
        solver_steps=25,
    ),
    # DiT-B/2 as SiT (arXiv 2401.08740) trains it on ImageNet, but for times and QK-norm. Latents of 32x32x16
    # take 84 GB of memory, twice while they are normalised.
    "standard": Preset(
        bucket="image_256x256",
        fps=24.0,
        zoom=1.0,
        train_samples=1_281_167,
        samples=50_000,
        width=768,
        depth=12,
        heads=12,
        patch=2,
        dtype="bfloat16",
        steps=400_000,
        batch=256,
        learning_rate=1e-4,
        warmup=1_000,
        ema=0.9999,
        solver_steps=125,
    ),
}
