"""Data positions in the files of a run: the number of training samples that each bucket has drawn.

They are stored as {"samples": {bucket name: samples}}. Samples and not batches are counted, so that a run
resumed with another batch size continues with the next sample.
"""

from collections.abc import Mapping
from typing import Any


def to_json(positions: Mapping[str, int]) -> dict[str, Any]:
    """The stored form of {bucket name: samples drawn}."""
    return {"samples": dict(positions)}


def from_json(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    """Returns {bucket name: samples drawn}.

    Args:
      stored: the stored form; that of earlier versions is {bucket name: batches drawn}.
      config: the configuration with which those batches were drawn, as nested dictionaries.
    """
    if "samples" in stored:
        return dict(stored["samples"])
    return {name: batches * config["data"]["buckets"][name]["batch"] for name, batches in stored.items()}
