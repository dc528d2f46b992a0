"""Budgets of the probe. Its scores depend on the budget, the codec, the media and the seeds."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vaejax.errors import InputError

DTYPES = ("float32", "bfloat16")
ATTENTION = ("full", "factorised")


def _setting(help: str, default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Preset:
    """The budget of a probe. Each field has its description in `metadata`; the defaults are the preset 'cpu'.

    Raises:
      InputError: for the first invalid field of those that `__post_init__` checks.
    """

    bucket: str = _setting("shape of a sample, image_HxW or video_TxHxW", "image_64x64")
    fps: float = _setting("frame rate to which clips are resampled", 12.0)
    zoom: float = _setting(
        "largest random scale of a crop, relative to the scale that just covers the bucket", 4.0
    )
    # Larger than the default of a training run: the comparison needs at least a few dozen real photos.
    holdout: float = _setting("share of a folder to hold out for comparison", 0.2)
    train_samples: int = _setting("number of samples to encode and learn from", 4096)
    samples: int = _setting("number of generated samples, and of held-out samples to compare them with", 256)
    width: int = _setting("channels of a token", 128)
    depth: int = _setting("number of transformer blocks", 4)
    heads: int = _setting("number of attention heads", 4)
    patch: int = _setting("side of a token in latent pixels: 1 or 2", 1)
    attention: str = _setting(
        "full, factorised (over space and over time in alternate blocks), or auto: factorised for clips",
        "auto",
    )
    dtype: str = _setting("compute dtype of the transformer, float32 or bfloat16", "float32")
    steps: int = _setting("number of updates", 600)
    batch: int = _setting("samples per update", 16)
    learning_rate: float = _setting("learning rate of Adam, constant after the warmup", 2e-3)
    warmup: int = _setting("updates over which the learning rate rises from 0", 30)
    ema: float = _setting("decay of the averaged parameters, which generate the samples", 0.98)
    solver_steps: int = _setting("steps of Heun's method, each with two evaluations of the model", 16)

    def __post_init__(self):
        accepted = {
            "fps": (self.fps > 0, "a number above 0"),
            "zoom": (self.zoom >= 1, "a number of at least 1"),
            "holdout": (0 < self.holdout < 1, "a share between 0 and 1"),
            "samples": (self.samples > 1, "a whole number of at least 2"),
            "width": (
                not self.width % 4 and not self.width % self.heads,
                f"a multiple of 4 and of heads = {self.heads}",
            ),
            "attention": (self.attention in ("auto", *ATTENTION), ", ".join(("auto", *ATTENTION))),
            "dtype": (self.dtype in DTYPES, ", ".join(DTYPES)),
            "ema": (self.ema < 1, "a number below 1"),
        }
        for name, (valid, accepts) in accepted.items():
            if not valid:
                raise InputError(f"{name} = {getattr(self, name)}; accepted: {accepts}")


PRESETS: Mapping[str, Preset] = {
    # Three seeds take a few minutes on two cores. At equal cost, 600 updates of 16 samples reach a lower
    # held-out loss than 300 of 32 (1.007 versus 1.032, learning rate 2e-3).
    "cpu": Preset(),
    # DiT-S/2. A 256x256 image with latents of 32x32 has 256 tokens, and a seed takes about 25 PFLOP.
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
    # DiT-B/2 as SiT (arXiv 2401.08740) trains it on ImageNet, except for the distribution of t and QK-norm.
    # The latents of all training images, 32x32x16 each, take 84 GB of memory, and twice that during
    # normalization.
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
