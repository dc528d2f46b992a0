"""The synthetic source: scenes move, and a sample shows the part of the scene that its crop names."""

import numpy as np
import pytest

from vaejax.config.schema import defaults
from vaejax.data.bucket import Bucket
from vaejax.data.crop import Crop
from vaejax.data.pipeline import train_stream
from vaejax.data.sampler import Sampler
from vaejax.data.sources import check_buckets, open_sources
from vaejax.errors import InputError

IMAGE, VIDEO = Bucket(1, 32, 48, 2), Bucket(9, 32, 48, 2)


def synthetic(**fields):
    data = defaults().data
    data.update(workers=0, holdout=0.1, sources={"made": {"kind": "synthetic", **fields}})
    return data


def test_scenes_fill_every_bucket_and_their_last_tenth_is_held_out():
    data = synthetic(photos=30, clips=20)
    sources = open_sources(data)
    check_buckets(sources, [IMAGE, VIDEO], data)
    held = [
        name
        for name, out in zip(*sources[0].table.select(["path", "held_out"]).columns, strict=True)
        if out.as_py()
    ]
    assert list(map(str, held)) == [f"synthetic/image/{i}" for i in (27, 28, 29)] + [
        f"synthetic/video/{i}" for i in (18, 19)
    ]
    assert Sampler(sources, IMAGE, "train", data)[0].frames.shape == (1, 32, 48, 3)


def test_samples_depend_on_the_seed_and_number_alone():
    streams = [
        train_stream(open_sources(data), [VIDEO], data, seed=0)
        for data in (synthetic(seed=1), synthetic(seed=1), synthetic(seed=2))
    ]
    first, same, other = (next(stream).batches[VIDEO.name].frames for stream in streams)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


def test_a_crop_is_the_part_of_the_scene_that_a_larger_drawing_shows():
    (source,) = open_sources(synthetic())
    record = source.record(0)
    whole, _ = source.read(record, 1, 24.0, Crop(256, 256, 1.0), 0.0)
    part, _ = source.read(record, 1, 24.0, Crop(128, 128, 2.0, (0.25, 0.75)), 0.0)
    # Both have the same scale. Pillow rounds corners to pixels of the canvas, so some edges differ.
    different = (part[0] != whole[0, 32:160, 96:224]).any(-1)
    assert different.mean() < 0.03
    assert (part[0] != whole[0, 40:168, 96:224]).any(-1).mean() > 0.1


def test_frames_continue_at_the_frame_rate_and_alpha_is_opaque():
    (source,) = open_sources(synthetic())
    record = source.record(10_000)
    assert record.kind == "video"
    crop = Crop(64, 64, channels=4)
    every, start = source.read(record, 9, 24.0, crop, 0.5)
    second, same = source.read(record, 5, 12.0, crop, start / (10.0 - 4 / 12))
    assert same == pytest.approx(start)
    np.testing.assert_array_equal(every[::2], second)
    assert (every[..., 3] == 255).all() and (every[0] != every[-1]).any()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"clips": -1}, "data.sources.made.clips = -1; accepted: a whole number, 0 or more"),
        ({"photos": 0, "clips": 0}, "data.sources.made: photos and clips are both 0"),
        ({"frames": 3}, "data.sources.made.frames: no such field of a synthetic source"),
    ],
)
def test_wrong_fields_get_one_line(fields, text):
    with pytest.raises(InputError, match="accepted") as error:
        open_sources(synthetic(**fields))
    assert text in str(error.value)
