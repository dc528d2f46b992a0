"""Configurations that ship with vaejax; name them without a path: --config=demo."""

from collections.abc import Sequence
from typing import Any

from vaejax.config.schema import defaults


def variant(arg: str, known: Sequence[str]) -> Any:
    """Returns the default ConfigDict after checking the variant that --config=FILE.py:VARIANT names.

    Args:
      arg: VARIANT, or '' if there is none.
      known: accepted values of `arg`.

    Raises:
      ValueError: if `arg` is not a known variant.
    """
    if arg not in known:
        names = ", ".join(name for name in known if name)
        raise ValueError(f"{arg}: no such variant; accepted: {names}, or no variant")
    return defaults()


def shrink(config: Any) -> None:
    """Shrinks a configuration to a run of minutes on a laptop; the caller shrinks the buckets."""
    config.steps = 20
    config.log_every = 5
    config.data.min_quality = 0
    config.data.workers = 1
    config.model.size = "tiny"
    config.model.widths = (24, 24, 48)
    config.model.dtype = "float32"
    config.optim.warmup = 5
    config.loss.perceptual.side = 32
    config.loss.perceptual.frames = config.loss.adversarial.frames = 2
    config.loss.adversarial.width = 8
    config.loss.adversarial.start, config.loss.adversarial.warmup, config.loss.adversarial.ramp = 10, 5, 5
    config.checkpoint.every = config.eval.every = config.panels.every = 10
    config.eval.samples = 8
    config.eval.latent_samples = 32
