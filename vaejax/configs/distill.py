"""Distills a small decoder that decodes the latents of a larger VAE.

    vaejax train --config=distill --config.teacher=PATH --config.data.media=FOLDER --workdir=DIR
    vaejax train --config=distill:tiny --config.teacher=PATH --workdir=DIR  # minutes on a laptop

PATH is a published VAE (see docs/finetuning.md), a run or an export. The result is a codec with the teacher's
encoder and the new decoder.
To distill an encoder, decoded by the teacher's decoder:

    --config.optim.train="('encoder',)" --config.loss.weights.anchor=1 --config.loss.weights.teacher=0
    --config.loss.weights.features=0 --config.loss.weights.reconstruction=1

Hardware: the device count divides 16. Scores: see docs/finetuning.md.
"""

from ml_collections import ConfigDict

from vaejax.configs import joint, shrink, variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is '' or 'tiny'."""
    config = variant(arg, ("", "tiny"))
    config.steps = 50_000
    config.data = joint.get_config("tiny" if arg == "tiny" else "").data
    config.model.size = "tiny_decoder"
    config.model.dtype = "bfloat16"
    config.optim.train = ("decoder",)
    # The teacher's pixels instead of the media's: what the latents do not determine would only be noise.
    config.loss.weights.reconstruction = 0.0
    config.loss.weights.teacher = 1.0
    config.loss.weights.features = 1.0
    config.loss.weights.perceptual = 1.0
    config.loss.weights.adversarial = 0.05
    config.loss.adversarial.start = 20_000
    config.loss.adversarial.warmup = 1000
    config.loss.adversarial.ramp = 5000
    config.checkpoint.best = "-mean/lpips_alexnet"
    if arg == "tiny":
        shrink(config)
        config.model.size = "tiny_decoder"
    return config
