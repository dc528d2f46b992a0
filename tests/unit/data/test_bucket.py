"""Buckets: names give shapes, the schedule is arithmetic, and errors name the key."""

import pytest
from ml_collections import ConfigDict

from vaejax.data.bucket import Bucket, draws, parse_buckets, scheduled
from vaejax.errors import InputError


def test_a_name_gives_shape_and_kind():
    image, video = parse_buckets(
        ConfigDict({"video_17x64x128": {"batch": 2, "weight": 0.5, "every": 3}, "image_32x64": {"batch": 4}}),
        8,
        4,
    )
    assert image == Bucket(1, 32, 64, 4) and (image.name, image.kind, image.pixels) == (
        "image_32x64",
        "image",
        2048,
    )
    assert video == Bucket(17, 64, 128, 2, 0.5, 3) and (video.name, video.kind) == (
        "video_17x64x128",
        "video",
    )


def test_a_batch_of_zero_turns_a_bucket_off():
    assert [
        b.name for b in parse_buckets({"image_8x8": {"batch": 0}, "image_16x16": {"batch": 1}}, 8, 4)
    ] == ["image_16x16"]


@pytest.mark.parametrize("every", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_draws_counts_the_scheduled_steps(every, seed):
    bucket = Bucket(17, 64, 64, 1, every=every)
    count = 0
    for step in range(40):
        assert draws(bucket, seed, step) == count
        count += bucket in scheduled([bucket], seed, step)
    assert 40 // every <= count <= 40 // every + 1


@pytest.mark.parametrize(
    "buckets, parts",
    [
        ({}, ["data.buckets", "at least one"]),
        ({"image_64": {"batch": 1}}, ["data.buckets.image_64: not a valid bucket name", "image_HxW"]),
        ({"image_064x64": {"batch": 1}}, ["data.buckets.image_064x64", "image_HxW"]),
        (
            {"image_64x64": {"batch": 1, "wieght": 2}},
            ["data.buckets.image_64x64.wieght", "batch, weight, every"],
        ),
        ({"image_64x64": 3}, ["data.buckets.image_64x64", "3", "batch"]),
        ({"image_64x64": {}}, ["data.buckets.image_64x64.batch", "missing"]),
        ({"video_16x64x64": {"batch": 2}}, ["data.buckets.video_16x64x64", "T = 16", "13 or 17"]),
        ({"video_1x64x64": {"batch": 2}}, ["data.buckets.video_1x64x64", "image_64x64"]),
        ({"image_60x64": {"batch": 2}}, ["data.buckets.image_60x64", "H = 60", "56 or 64"]),
        (
            {"image_56x64": {"batch": 2}},
            ["H = 56 with batch = 2", "8 x mesh.space = 16", "48 or 64", "multiple of 4"],
        ),
        ({"image_64x100": {"batch": 2}}, ["data.buckets.image_64x100", "W = 100", "96 or 104"]),
        ({"image_64x64": {"batch": 3}}, ["data.buckets.image_64x64.batch = 3", "mesh.data", "2 or 4"]),
        ({"image_64x64": {"batch": 2.0}}, ["data.buckets.image_64x64.batch = 2.0", "whole number"]),
        ({"image_64x64": {"batch": 2, "every": 0}}, ["data.buckets.image_64x64.every = 0", "1 or more"]),
        ({"image_64x64": {"batch": 2, "weight": -1}}, ["data.buckets.image_64x64.weight = -1", "0 or more"]),
        ({"image_64x64": {"batch": 2, "weight": "1"}}, ["data.buckets.image_64x64.weight = '1'", "number"]),
        ({"image_64x64": {"batch": 0}}, ["data.buckets", "off"]),
        ({"image_64x64": {"batch": 2, "every": 2}}, ["data.buckets.image_64x64.every = 2", "every = 1"]),
    ],
)
def test_an_error_is_one_line(buckets, parts):
    with pytest.raises(InputError) as error:
        parse_buckets(ConfigDict(buckets), 8, 4, shards=2, space=2)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
