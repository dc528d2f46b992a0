"""Videos alone: the first week of the field notes, at the flagship's two lower resolutions.

    python -m vaejax.main --config=configs/video.py --workdir=DIR --config.data.media=FOLDER
    python -m vaejax.main --config=configs/video.py:tiny --workdir=DIR --config.data.media=FOLDER

Hardware: one node of eight accelerators. An image given to this model is reconstructed worse than by
joint.py's: that is what joint training is for. Reconstruction and KL alone; loss.weights add
the rest. Scores: still to be measured at this size.
"""

from ml_collections import ConfigDict

from vaejax.config.schema import shrink, variant


def get_config(arg: str = "") -> ConfigDict:
    """The configuration; arg is '' or 'tiny'."""
    config = variant(arg, ("", "tiny"))
    config.data.sources = {"clips": {"kind": "tfds", "name": "tao/full_resolution", "split": "train"}}
    config.data.buckets = {
        "video_17x192x320": {"batch": 16},
        "video_17x256x256": {"batch": 16, "every": 2},
        "video_33x192x320": {"batch": 8, "every": 4},
    }
    config.data.zoom = 2.0
    config.model.dtype = "bfloat16"
    config.model.remat = (0, 1)
    if arg == "tiny":
        shrink(config)
        config.data.buckets = {"video_9x48x80": {"batch": 8}}
        config.data.fps = 10.0
    return config
