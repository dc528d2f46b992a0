"""The samples of an evaluation are the same for every batch size and every place of the folder."""

import shutil

import numpy as np
import pytest

from tests.support import media_files
from vaejax.config.schema import DataConfig
from vaejax.data.bucket import Bucket
from vaejax.evaluate.samples import open_samples


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_no_file_is_used_twice_when_another_becomes_unreadable(tmp_path, batch):
    media_files.write_photos(tmp_path, 8)
    samples = open_samples(str(tmp_path), DataConfig())
    *sound, damaged = sorted(path.name for path in tmp_path.glob("*.png"))
    (tmp_path / damaged).write_bytes(b"no photo")
    bucket = Bucket(1, 32, 32, 1)
    names = [name for _, some, _ in samples.batches(bucket, batch) for name in some]
    assert sorted(name.rpartition("/")[2].rpartition("@")[0] for name in names) == sound


def test_a_limited_evaluation_of_a_copied_folder_scores_the_same_files(tmp_path):
    def scored(folder):
        samples = open_samples(str(folder), DataConfig(), limit=4)
        ((frames, _, _),) = samples.batches(Bucket(1, 32, 32, 1), 4)
        return frames

    (tmp_path / "original").mkdir()
    media_files.write_photos(tmp_path / "original", 12)
    for place in ("first", "second", "third"):
        shutil.copytree(tmp_path / "original", tmp_path / place)
        np.testing.assert_array_equal(scored(tmp_path / place), scored(tmp_path / "original"))
