"""The demo: a small joint VAE on photos and clips that PyPI packages ship, on two CPU cores.

    pip install -e '.[demo]'
    vaejax train --config=demo --workdir=runs/demo

Hardware: a laptop; 8 to 15 minutes on two cores. Expected scores: PSNR 27.5 dB on images and 27.2 dB on
clips (linear codec: 27.4 and 26.6 dB), LPIPS .050 and .101. Only the last 250 updates train with the
perceptual term, and only the last 200 with the adversarial term. The two terms cost 0.3 dB. They lower LPIPS
by half on images and by a third on clips. This LPIPS uses AlexNet, as the demo's perceptual term does.

On your own media: --config.data.media=FOLDER[,FOLDER]
"""

from ml_collections import ConfigDict

from vaejax.configs import variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is '' or 'tiny', which shrinks it for a test."""
    config = variant(arg, ("", "tiny"))
    config.steps = 900
    config.log_every = 20

    config.data.sources = {"demo": {"kind": "demo"}}
    config.data.buckets = {
        "image_64x64": {"batch": 8, "weight": 1.0},
        "video_9x64x64": {"batch": 2, "weight": 1.0},
    }
    config.data.fps = 12.0
    config.data.zoom = 4.0  # the photos are few; random scales make more samples of them
    config.data.workers = 1

    config.model.size = "tiny"
    # A Gaussian likelihood is squared error, the error that PSNR measures.
    config.loss.likelihood = "gaussian"
    # On two cores, AlexNet on whole frames is cheaper than VGG16 on a window, and improves scores more.
    config.loss.perceptual.network = "alexnet"
    config.loss.perceptual.side = 0
    config.loss.perceptual.start = 650  # = adversarial start - warmup, so one compilation serves both
    config.loss.weights.perceptual = 2.0
    config.loss.weights.adversarial = 0.05
    config.loss.adversarial.width = 32
    config.loss.adversarial.frames = 2
    config.loss.adversarial.start = 700
    config.loss.adversarial.warmup = 50
    config.loss.adversarial.ramp = 50

    config.optim.learning_rate = 1e-3
    config.optim.warmup = 30
    config.ema.decay = 0.98

    config.checkpoint.every = 300
    config.eval.every = 300
    config.panels.every = 300
    if arg == "tiny":
        config.steps = 4
        config.log_every = 1
        config.loss.perceptual.start = config.loss.adversarial.start = config.loss.adversarial.warmup = 2
        config.loss.adversarial.width = 8
        config.model.widths = (24, 24, 48)
        config.data.workers = 0
        config.eval.samples = 4
        config.eval.linear_samples = config.eval.latent_samples = 32
    return config
