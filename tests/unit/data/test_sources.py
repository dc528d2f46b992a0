"""Sources: the samples that fit a bucket, the held-out ones, and the messages if there are none."""

import av
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from tests.support import media_files
from vaejax.config.schema import defaults
from vaejax.data.bucket import Bucket
from vaejax.data.sources import check_buckets, held_out_report, open_sources, training_files
from vaejax.data.split import HELD_OUT_TAIL, held_out
from vaejax.data.table import candidates
from vaejax.errors import InputError
from vaejax.rundir.skipped_samples import SkippedSamples

IMAGE, VIDEO = Bucket(1, 32, 32, 2), Bucket(9, 32, 32, 2)


def photo(path, width=64, height=48, value=128, **save):
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    Image.fromarray((np.broadcast_to(ramp, (height, width, 3)) + value / 2).astype(np.uint8)).save(
        path, **save
    )


def clip(path, seconds=2.0, fps=24, width=64, height=48):
    """A clip whose brightness encodes the time: frame i of n is grey 40 + 200·i/n."""
    count = round(seconds * fps)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 10**6
        for i in range(count):
            picture = np.full((height, width, 3), 40 + 200 * i // count, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())


def media_data(folder, **changes):
    data = defaults().data
    data.update(media=str(folder), workers=0, **changes)
    return data


def paths(source, bucket, split, data):
    return [source.record(int(i)).path.rsplit("/", 1)[1] for i in candidates(source, bucket, split, data)]


def test_a_photo_fits_if_covering_the_bucket_enlarges_it_little_enough(tmp_path):
    photo(tmp_path / "large.png", 64, 48)
    photo(tmp_path / "wide.png", 200, 24)
    photo(tmp_path / "small.png", 20, 20)
    data = media_data(tmp_path, holdout=0.0)
    (source,) = open_sources(data)
    assert paths(source, IMAGE, "train", data) == ["large.png"]
    data.max_upscale = 32 / 24
    assert paths(source, IMAGE, "train", data) == ["large.png", "wide.png"]
    data.max_upscale = 32 / 20
    assert paths(source, IMAGE, "train", data) == ["large.png", "small.png", "wide.png"]


def test_min_quality_drops_poor_jpegs_and_keeps_what_has_no_estimate(tmp_path):
    photo(tmp_path / "poor.jpg", quality=30)
    photo(tmp_path / "good.jpg", quality=95)
    photo(tmp_path / "exact.png")
    data = media_data(tmp_path, min_quality=70, holdout=0.0)
    (source,) = open_sources(data)
    assert paths(source, IMAGE, "train", data) == ["exact.png", "good.jpg"]


def test_hdr_media_are_left_out_of_both_splits_on_request(tmp_path):
    for i in range(20):
        photo(tmp_path / f"{i}.png")
        if i % 2:
            media_files.tag_png_as_hdr(tmp_path / f"{i}.png")
    for name, transfer in (("hlg", "arib-std-b67"), ("pq", "smpte2084"), ("sdr", "bt709")):
        options = {"x264-params": f"transfer={transfer}"}
        path = tmp_path / f"{name}.mp4"
        media_files.write_clip(path, [media_files.corners()] * 72, rate=24, options=options)
    data = media_data(tmp_path, holdout=0.4)
    sources = open_sources(data)
    assert data.hdr == "convert"
    everything = [set(paths(sources[0], IMAGE, split, data)) for split in ("train", "eval")]
    assert len(everything[0] | everything[1]) == 20
    data.hdr = "skip"
    sdr = {f"{i}.png" for i in range(0, 20, 2)}
    for names, split in zip(everything, ("train", "eval"), strict=True):
        assert names - sdr and set(paths(sources[0], IMAGE, split, data)) == names & sdr
        assert paths(sources[0], VIDEO, split, data) == ["sdr.mp4"]
    (tmp_path / "sdr.mp4").unlink()
    message = r"of 2 clips the largest .*, 2 left out as HDR; accepted: .*, data\.hdr = convert, or"
    with pytest.raises(InputError, match=message):
        check_buckets(open_sources(data), [VIDEO], data)


def test_a_clip_fits_if_it_is_long_and_fast_enough_and_never_as_an_image(tmp_path):
    clip(tmp_path / "long.mp4", 1.0)
    clip(tmp_path / "exact.mp4", 9 / 24)
    clip(tmp_path / "short.mp4", 7 / 24)
    clip(tmp_path / "slow.mp4", 3.0, fps=6)
    clip(tmp_path / "still.avi", 1 / 24)
    data = media_data(tmp_path, holdout=0.0)
    (source,) = open_sources(data)
    assert paths(source, VIDEO, "train", data) == ["exact.mp4", "long.mp4"]
    assert paths(source, IMAGE, "train", data) == ["still.avi"]


def test_photos_are_held_out_by_a_hash_of_their_relative_paths(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for i in range(40):
            photo(tmp_path / folder / f"{i}.png", 40, 40)
    splits = {}
    for folder in ("one", "two"):
        data = media_data(tmp_path / folder, holdout=0.2)
        (source,) = open_sources(data)
        splits[folder] = [set(paths(source, IMAGE, split, data)) for split in ("train", "eval")]
    train, kept = splits["one"]
    assert not train & kept and len(train | kept) == 40 and 2 <= len(kept) <= 16
    assert splits["one"] == splits["two"]


def test_at_least_one_of_two_is_held_out_and_a_growing_folder_moves_nothing():
    assert (
        len(held_out(["a", "b"], 0.001)) == 1 and not held_out(["a"], 0.5) and not held_out(["a", "b"], 0.0)
    )
    names = [f"{i}.jpg" for i in range(1000)]
    few, many = held_out(names[:500], 0.1), held_out(names, 0.1)
    assert few == many & set(names[:500]) and 60 < len(many) < 140


def test_few_clips_are_cut_in_time_and_many_are_split_by_file(tmp_path):
    for i in range(3):
        clip(tmp_path / f"{i}.mp4", 3.0)
    data = media_data(tmp_path)
    (source,) = open_sources(data)
    spans = [
        [source.record(int(i)) for i in candidates(source, VIDEO, split, data)] for split in ("train", "eval")
    ]
    assert [len(r) for r in spans] == [3, 3]
    seam = 3.0 * (1 - HELD_OUT_TAIL)
    for train, kept in zip(*spans, strict=True):
        assert train.path == kept.path and train.stop + 1 / 24 < seam <= kept.start < kept.stop
        assert (kept.start, kept.stop) == pytest.approx((seam, 3.0 - 1 / 24))
    for i in range(3, 12):
        clip(tmp_path / f"{i}.mp4", 1.0)
    (source,) = open_sources(data)
    train, kept = (set(paths(source, VIDEO, split, data)) for split in ("train", "eval"))
    assert kept and not train & kept and len(train | kept) == 12


def test_several_folders_are_one_source_and_broken_files_are_listed(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        photo(tmp_path / name / "x.png")
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no picture")
    data = media_data(f"{tmp_path / 'a'}, {tmp_path / 'b'}", holdout=0.0)
    (source,) = open_sources(data)
    assert len(candidates(source, IMAGE, "train", data)) == 2
    ((path, reason),) = source.unreadable
    assert path.endswith("b/broken.jpg") and reason


def test_a_folder_may_have_a_comma_in_its_name(tmp_path):
    folders = [tmp_path / "a, b", tmp_path / "c"]
    for folder in folders:
        folder.mkdir()
        photo(folder / f"{folder.name[0]}.png")
    names = [str(folder) for folder in folders]
    data = media_data(names[0], holdout=0.0)
    assert paths(*open_sources(data), IMAGE, "train", data) == ["a.png"]
    data = defaults().data
    data.holdout, data.media = 0.0, names
    assert paths(*open_sources(data), IMAGE, "train", data) == ["a.png", "c.png"]
    data.media, data.sources = "", {"mine": {"kind": "media", "path": names}}
    assert paths(*open_sources(data), IMAGE, "train", data) == ["a.png", "c.png"]
    data.sources.mine.path = [1]
    with pytest.raises(
        InputError, match=r"data\.sources\.mine\.path = .*1.*; accepted: FOLDER\[,FOLDER\], or a"
    ):
        open_sources(data)


def test_skipped_samples_are_counted_over_resumes(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    skipped = SkippedSamples(path)
    assert not path.exists()
    skipped.add_unreadable([("a.jpg", "broken")])
    skipped.add_skipped([("b.mp4", "cut off"), ("b.mp4", "cut off")])
    skipped.write()
    with path.open("a") as file:
        file.write('{"path": "half a li')
    skipped = SkippedSamples(path)
    skipped.add_unreadable([("a.jpg", "broken")])
    skipped.add_skipped([("b.mp4", "cut off")])
    skipped.write()
    assert path.read_text().splitlines() == [
        '{"path": "a.jpg", "reason": "broken", "count": 1}',
        '{"path": "b.mp4", "reason": "cut off", "count": 3}',
    ]


def test_demo_holds_out_two_photos_and_the_ends_of_three_clips():
    data = defaults().data
    data.sources = {"demo": {"kind": "demo"}}
    (source,) = open_sources(data)
    assert paths(source, Bucket(1, 64, 64, 2), "eval", data) == ["coffee.png", "flower.jpg"]
    assert len(paths(source, Bucket(1, 64, 64, 2), "train", data)) == 8
    for split in ("train", "eval"):
        assert len(paths(source, Bucket(17, 64, 64, 2), split, data)) == 3


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({}, ["data.sources is empty", "data.media"]),
        (
            {"sources": {"mine": {"kind": "jpeg"}}},
            ["data.sources.mine.kind = 'jpeg'", "media, webdataset, parquet, manifest"],
        ),
        ({"sources": {"mine": 3}}, ["data.sources.mine = 3", "kind"]),
        ({"sources": {"mine": {"kind": "media", "folder": "x"}}}, ["data.sources.mine.folder", "path"]),
        (
            {"sources": {"mine": {"kind": "demo", "weight": -1}}},
            ["data.sources.mine.weight = -1", "0 (off) or more"],
        ),
        ({"sources": {"mine": {"kind": "demo", "weight": 0}}}, ["data.sources", "above 0"]),
        ({"sources": {"mine": {"kind": "media"}}}, ["data.sources.mine.path", "FOLDER"]),
        ({"media": "/no/such"}, ["data.media = /no/such", "a folder"]),
        (
            {"sources": {"mine": {"kind": "array_record", "path": "/no"}}},
            ["data.sources.mine.path", "vaejax.data.prepare"],
        ),
        ({"sources": {"mine": {"kind": "tfds"}}}, ["data.sources.mine.name is missing"]),
    ],
)
def test_an_error_is_one_line(changes, parts):
    data = defaults().data
    data.update(ConfigDict(changes))
    with pytest.raises(InputError) as error:
        open_sources(data)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


def test_an_empty_or_broken_folder_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.media = .*accepted"):
        open_sources(media_data(tmp_path))
    data = defaults().data
    data.sources = {"mine": {"kind": "media", "path": str(tmp_path)}}
    with pytest.raises(InputError, match=r"data\.sources\.mine\.path = .*accepted"):
        open_sources(data)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"data\.media = .*none of its 1 .*accepted"):
        open_sources(media_data(tmp_path))


def test_a_bucket_that_nothing_fits_is_named_with_what_there_is(tmp_path):
    photo(tmp_path / "a.png", 64, 48)
    clip(tmp_path / "a.mp4", 1.0)
    data = media_data(tmp_path)
    sources = open_sources(data)
    with pytest.raises(
        InputError, match=r"data\.buckets\.image_128x128: .* 48x64 \(HxW\); accepted: .*max_upscale"
    ):
        check_buckets(sources, [Bucket(1, 128, 128, 2)], data)
    with pytest.raises(
        InputError, match=r"data\.buckets\.video_97x32x32: .*longest \d\.\d\d s \(4\.00 s are needed"
    ):
        check_buckets(sources, [Bucket(97, 32, 32, 2)], data)


def test_all_buckets_that_nothing_fits_are_named_in_one_error_with_their_flags(tmp_path):
    photo(tmp_path / "a.png", 64, 48)
    data = media_data(tmp_path)
    sources = open_sources(data)
    with pytest.raises(InputError) as error:
        check_buckets(sources, [IMAGE, Bucket(1, 128, 128, 2), VIDEO], data)
    message = str(error.value)
    assert "\n" not in message and "image_32x32" not in message
    assert message.startswith("data.buckets.image_128x128: no training sample fits; ")
    assert "; data.buckets.video_9x32x32: no training sample fits; there are no clips; accepted: " in message
    assert message.endswith(
        ", or --config.data.buckets.image_128x128.batch=0 --config.data.buckets.video_9x32x32.batch=0"
    )


def test_the_held_out_report_counts_files_that_fit_and_notes_if_they_are_few(tmp_path):
    for i in range(5):
        photo(tmp_path / f"{i}.png", 64, 48)
    clip(tmp_path / "a.mp4", 3.0)
    data = media_data(tmp_path, holdout=0.8)
    sources = open_sources(data)
    kept = paths(sources[0], IMAGE, "eval", data)
    held, few, none = held_out_report(sources, [IMAGE, VIDEO, Bucket(97, 32, 32, 2)], data)
    assert held == (
        f"held out: {len(kept)} photos that fit ({', '.join(kept[:3])}{', ...' * (len(kept) > 3)}),"
        " the last fifth of 1 clip that fits (a.mp4)"
    )
    assert few.startswith(f"note: evaluating image_32x32 on {len(kept)} photos, video_9x32x32 on 1 clip: ")
    assert none.startswith(
        "warning: video_97x32x32 is not evaluated: data.buckets.video_97x32x32: no held-out"
    )


def test_clips_held_out_whole_and_in_part_are_reported_apart(tmp_path):
    for folder, count in (("a", 12), ("b", 2)):
        (tmp_path / folder).mkdir()
        for i in range(count):
            clip(tmp_path / folder / f"{folder}{i}.mp4", 3.0)
    entries = {name: {"kind": "media", "path": str(tmp_path / name)} for name in ("a", "b")}
    data = media_data("", holdout=0.3, sources=entries)
    sources = open_sources(data)
    whole = len(paths(sources[0], VIDEO, "eval", data))
    assert 0 < whole < 12
    held = held_out_report(sources, [VIDEO], data)[0]
    assert held.startswith(f"held out: {whole} clip{'s' * (whole > 1)} that fit{'s' * (whole == 1)} (a")
    assert held.endswith(", the last fifth of 2 clips that fit (b0.mp4, b1.mp4)")


def test_training_files_are_counted_once_and_if_they_fit(tmp_path):
    for i in range(9):
        photo(tmp_path / f"{i}.png", 64 if i < 6 else 16, 48)
    clip(tmp_path / "a.mp4", 3.0)
    clip(tmp_path / "b.mp4", 0.2)  # too short
    data = media_data(tmp_path, holdout=0.2)
    sources = open_sources(data)
    trained = set(paths(sources[0], IMAGE, "train", data))
    assert 0 < len(trained) <= 6
    assert training_files(sources, [IMAGE, IMAGE, VIDEO], data) == {"photo": len(trained), "clip": 1}
    assert training_files(sources, [IMAGE], data)["clip"] == 0


def test_a_held_out_photo_that_fits_no_bucket_is_not_counted(tmp_path):
    for i in range(20):
        photo(tmp_path / f"{i}.png", 64 if i % 2 else 16, 48)
    data = media_data(tmp_path, holdout=0.5)
    sources = open_sources(data)
    table = sources[0].table.to_pylist()
    fit = [row["path"] for row in table if row["held_out"] and row["width"] == 64]
    assert 0 < len(fit) < sum(row["held_out"] for row in table)
    held, _ = held_out_report(sources, [IMAGE], data)
    assert held.startswith(f"held out: {len(fit)} photo{'s' * (len(fit) > 1)} that fit")
