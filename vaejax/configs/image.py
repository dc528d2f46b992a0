"""Images only: a VAE for image diffusion, and the control experiment for joint training.

    vaejax train --config=image --workdir=DIR --config.data.media=FOLDER
    vaejax train --config=image:tiny --workdir=DIR --config.data.media=FOLDER

Hardware: one node of eight accelerators. An image's convolutions are 2D, so the time axis costs nothing. The
model also accepts clips, but is never trained on motion. It trains on reconstruction and KL only;
loss.weights adds the other terms.
Scores: not measured at this size.
"""

from ml_collections import ConfigDict

from vaejax.configs import shrink, variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is '' or 'tiny'."""
    config = variant(arg, ("", "tiny"))
    config.data.sources = {"photos": {"kind": "tfds", "name": "div2k", "feature": "hr", "split": "train"}}
    config.data.buckets = {
        "image_256x256": {"batch": 64},
        "image_192x320": {"batch": 64, "every": 2},
        "image_320x192": {"batch": 64, "every": 2},
    }
    config.data.zoom = 4.0
    config.data.min_quality = 75  # JPEG artifacts are noise that distorts the latent (docs/training.md)
    config.model.dtype = "bfloat16"
    if arg == "tiny":
        shrink(config)
        config.data.buckets = {"image_64x64": {"batch": 8}}
    return config
