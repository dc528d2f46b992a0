"""Videos only, at the flagship's lowest resolution: the control experiment for joint training.

    vaejax train --config=video --workdir=DIR --config.data.media=FOLDER
    vaejax train --config=video:tiny --workdir=DIR --config.data.media=FOLDER

Hardware: one node of eight accelerators. This model should reconstruct single images worse than joint.py's,
which would justify joint training. It trains on reconstruction and KL only; loss.weights adds the other
terms. Scores: not measured at this size.
"""

from ml_collections import ConfigDict

from vaejax.configs import shrink, variant


def get_config(arg: str = "") -> ConfigDict:
    """Returns the configuration; `arg` is '' or 'tiny'."""
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
