"""The flagship: trains on images and videos together, at three resolutions and several aspect ratios.

    vaejax train --config=joint --workdir=DIR
    vaejax train --config=joint --workdir=DIR --config.data.media=FOLDER[,FOLDER]
    vaejax train --config=joint:large --workdir=DIR  # 384M parameters instead of 96M, for a TPU pod
    vaejax train --config=joint:tiny --workdir=DIR   # shrunk: minutes on a laptop

Hardware: a pod slice or GPU node whose device count divides 16. mesh.fsdp and mesh.space save memory
at the cost of communication. `large` sets the mesh and batches for 256 TPU chips; `vaejax plan` reports what
fits on others.
Scores: not measured. Only `tiny` was trained; the full size ran for a few updates on one H100
(benchmarks/README.md).

The default sources are public TFDS data sets; prepare them once:

    vaejax prepare --tfds=div2k
    vaejax prepare --tfds=tao/full_resolution
"""

from ml_collections import ConfigDict

from vaejax.configs import shrink, variant

# Loss weight at 180p, 360p and 720p, from Linum's field notes (docs/training.md). It keeps the model from
# forgetting low resolutions.
WEIGHT = {180: 1.1, 360: 0.1, 720: 0.01}
# Batches of `large` for 256 chips of 16 GB. Each chip gets at least one sample, except in the last two rows:
# there eight chips share the height of each clip.
LARGE = {
    "image_192x320": 1024,
    "image_320x192": 512,
    "image_384x640": 256,
    "image_704x1280": 256,
    "video_17x192x320": 256,
    "video_33x192x320": 256,
    "video_17x384x640": 64,
    "video_17x704x1280": 32,
}


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is '', 'large' or 'tiny'."""
    config = variant(arg, ("", "large", "tiny"))
    config.steps = 200_000
    config.data.sources = {
        "photos": {"kind": "tfds", "name": "div2k", "feature": "hr", "split": "train"},
        "clips": {"kind": "tfds", "name": "tao/full_resolution", "split": "train"},
    }
    # Near 180p, 360p and 720p, in heights that mesh.space = 8 can split. `every` gives each bucket about
    # the same share of the training time.
    config.data.buckets = {
        "image_192x320": {"batch": 64, "weight": WEIGHT[180]},
        "image_320x192": {"batch": 32, "weight": WEIGHT[180], "every": 2},
        "image_384x640": {"batch": 16, "weight": WEIGHT[360], "every": 2},
        "image_704x1280": {"batch": 16, "weight": WEIGHT[720], "every": 4},
        "video_17x192x320": {"batch": 16, "weight": WEIGHT[180]},
        "video_33x192x320": {"batch": 16, "weight": WEIGHT[180], "every": 4},
        "video_17x384x640": {"batch": 16, "weight": WEIGHT[360], "every": 4},
        "video_17x704x1280": {"batch": 16, "weight": WEIGHT[720], "every": 8},
    }
    config.data.zoom = 2.0
    config.data.min_quality = 75  # JPEG artifacts are noise that distorts the latent (docs/training.md)
    config.data.workers = 16

    config.model.size = "large" if arg == "large" else "base"
    config.model.dtype = "bfloat16"
    config.model.remat = (0, 1)
    # Reconstruction is learned first; until then the discriminators would see only blur.
    config.loss.weights.perceptual = 1.0
    config.loss.weights.adversarial = 0.05
    config.loss.adversarial.start = 50_000
    config.loss.adversarial.warmup = 1000
    config.loss.adversarial.ramp = 5000
    config.checkpoint.best = "-mean/lpips_alexnet"
    config.eval.every = 5000
    config.eval.linear_samples = 64
    config.panels.every = 5000

    if arg == "large":
        config.mesh.update({"fsdp": 16, "space": 8})
        for name, batch in LARGE.items():
            config.data.buckets[name]["batch"] = batch
    if arg == "tiny":
        shrink(config)
        config.data.buckets = {
            "image_48x80": {"batch": 8, "weight": WEIGHT[180]},
            "image_64x64": {"batch": 8, "weight": WEIGHT[180], "every": 2},
            "image_96x160": {"batch": 8, "weight": WEIGHT[360], "every": 2},
            "video_5x48x80": {"batch": 8, "weight": WEIGHT[180]},
            "video_9x48x80": {"batch": 8, "weight": WEIGHT[180], "every": 4},
        }
        config.data.fps = 10.0
    return config
