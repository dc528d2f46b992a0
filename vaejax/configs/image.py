"""Images alone: the control experiment of the field notes, and a VAE for image diffusion.

    python -m vaejax.main --config=configs/image.py --workdir=DIR --config.data.media=FOLDER
    python -m vaejax.main --config=configs/image.py:tiny --workdir=DIR --config.data.media=FOLDER

Hardware: one node of eight accelerators. Time costs an image nothing: its convolutions are 2D. A clip may be
given to this model, but it has never seen motion. Reconstruction and KL alone; loss.weights add
the rest. Scores: still to be measured at this size.
"""

from ml_collections import ConfigDict

from vaejax.config.schema import shrink, variant


def get_config(arg: str = "") -> ConfigDict:
    """The configuration; arg is '' or 'tiny'."""
    config = variant(arg, ("", "tiny"))
    config.data.sources = {"photos": {"kind": "tfds", "name": "div2k", "feature": "hr", "split": "train"}}
    config.data.buckets = {
        "image_256x256": {"batch": 64},
        "image_192x320": {"batch": 64, "every": 2},
        "image_320x192": {"batch": 64, "every": 2},
    }
    config.data.zoom = 4.0
    config.data.min_quality = 75  # the notes: JPEG artefacts are noise that distorts the latent
    config.model.dtype = "bfloat16"
    if arg == "tiny":
        shrink(config)
        config.data.buckets = {"image_64x64": {"batch": 8}}
    return config
