"""Fine-tunes a published VAE, or one of your own, on your media.

    vaejax train --config=finetune --config.init=PATH --config.data.media=FOLDER --workdir=DIR
    vaejax train --config=finetune:tiny --config.init=PATH --workdir=DIR  # minutes on a laptop

PATH is a published VAE (see docs/finetuning.md), a run or an export. The decoder trains alone, so diffusion
models that know the latents of PATH still work. To train the encoder too, hold it to the old latents:

    --config.optim.train="('encoder', 'decoder')" --config.loss.weights.anchor=1 --config.eval.max_drift=0.1

Hardware: the device count divides 16. Scores: see docs/finetuning.md.
"""

from ml_collections import ConfigDict

from vaejax.configs import joint, shrink, variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is '' or 'tiny'."""
    config = variant(arg, ("", "tiny"))
    config.steps = 20_000
    config.data = joint.get_config("tiny" if arg == "tiny" else "").data
    config.model.family = ""  # that of init
    config.model.dtype = "bfloat16"
    config.model.remat = (0, 1)
    config.optim.train = ("decoder",)
    config.optim.learning_rate = 2e-5
    config.loss.weights.perceptual = 1.0
    config.loss.weights.adversarial = 0.05
    # The reconstruction is good from the start, but the discriminators know nothing yet.
    config.loss.adversarial.start = 2000
    config.loss.adversarial.warmup = 1000
    config.loss.adversarial.ramp = 2000
    config.checkpoint.best = "-mean/lpips_alexnet"
    if arg == "tiny":
        shrink(config)
        config.model.remat = ()
    return config
