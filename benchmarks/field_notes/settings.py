"""Buckets and batches that several lessons share."""

import json
from typing import Any, NamedTuple

from benchmarks.field_notes.lab import Lab


class Joint(NamedTuple):
    """A bucket of images and one of clips.

    Attributes:
      buckets: their names.
      settings: the settings that choose them.
    """

    buckets: tuple[str, str]
    settings: dict[str, Any]


def joint(lab: Lab, clip_weight: float = 1.0, small: bool = False) -> Joint:
    """Equal batches of images and clips for a preset; `small` takes the smallest ones on a CPU."""
    if lab.preset == "gpu":
        sizes = {"image_256x256": 32, "video_17x256x256": 4}
    else:
        sizes = {"image_32x32": 8, "video_5x32x32": 2} if small else {"image_64x64": 8, "video_9x64x64": 1}
    image, clip = sizes
    buckets = {image: {"batch": sizes[image]}, clip: {"batch": sizes[clip], "weight": clip_weight}}
    return Joint((image, clip), {"data.buckets": json.dumps(buckets)})
