"""The pipeline: the samples of a step depend on the seed and the step only."""

import dataclasses
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import grain
import numpy as np
import pytest
from PIL import Image

from vaejax.config.schema import defaults
from vaejax.data import media, pipeline
from vaejax.data.bucket import Bucket, draws
from vaejax.data.sampler import Sampler
from vaejax.data.sources import open_sources
from vaejax.data.table import Source, candidates
from vaejax.errors import TrainingFailed

PHOTOS, CLIPS, LARGE = Bucket(1, 32, 32, 4), Bucket(5, 24, 32, 2, every=2), Bucket(1, 48, 48, 2, every=3)
BUCKETS = (PHOTOS, LARGE, CLIPS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten photos of different colors and two clips."""
    folder = tmp_path_factory.mktemp("media")
    for i in range(10):
        ramp = np.linspace(0, 40, 64)[None, :, None] + np.linspace(0, 40, 56)[:, None, None]
        picture = ramp + np.array([40 + 15 * i, 160 - 12 * i, 80])
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{i}.png")
    for name in ("a", "b"):
        with av.open(str(folder / f"{name}.mp4"), "w") as file:
            stream = file.add_stream("mpeg4", rate=24)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for i in range(48):
                picture = np.full((48, 64, 3), 40 + 4 * i, np.uint8)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
            file.mux(stream.encode())
    return folder


def opened(folder, **changes):
    data = defaults().data
    data.update(media=str(folder), workers=0, holdout=0.2, zoom=1.5, **changes)
    return open_sources(data), data


def take(sources, data, count, buckets=BUCKETS, **arguments):
    with pipeline.train_stream(sources, buckets, data, **{"seed": 3} | arguments) as stream:
        return [next(stream) for _ in range(count)]


def assert_same(one, two):
    assert [u.step for u in one] == [u.step for u in two]
    for a, b in zip(one, two, strict=True):
        assert list(a.batches) == list(b.batches)
        for name, batch in a.batches.items():
            assert batch.names == b.batches[name].names and batch.skipped == b.batches[name].skipped
            np.testing.assert_array_equal(batch.frames, b.batches[name].frames)


def test_a_step_has_the_scheduled_buckets_as_uint8(folder):
    sources, data = opened(folder)
    updates = take(sources, data, 6)
    assert [u.step for u in updates] == list(range(6))
    assert {n: sum(n in u.batches for u in updates) for n in (b.name for b in BUCKETS)} == {
        "image_32x32": 6,
        "image_48x48": 2,
        "video_5x24x32": 3,
    }
    for update in updates:
        for bucket in BUCKETS:
            if bucket.name in update.batches:
                batch = update.batches[bucket.name]
                assert batch.frames.shape == (bucket.batch, bucket.frames, bucket.height, bucket.width, 3)
                assert batch.frames.dtype == np.uint8 and len(batch.names) == bucket.batch
                assert batch.frames.min(axis=(1, 2, 3, 4)).min() > 10


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(folder, workers):
    sources, data = opened(folder)
    expected = take(sources, data, 5)
    data.workers = workers
    assert_same(take(sources, data, 5), expected)
    deadline = time.time() + 10
    while multiprocessing.active_children() and time.time() < deadline:
        time.sleep(0.1)
    assert not multiprocessing.active_children()


class Noted:
    """A source that notes what is read from it."""

    def __init__(self, source, notes):
        self.source, self.notes = source, notes
        self.label, self.weight, self.table, self.cache = source.label, 1.0, source.table, None

    def record(self, index):
        return self.source.record(index)

    def read(self, record, *asked):
        with open(self.notes, "a") as file:
            print(record.path, file=file)
        return self.source.read(record, *asked)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_whole_update_is_decoded_ahead(folder, tmp_path, workers):
    """Otherwise workers are idle while the update is computed."""
    sources, data = opened(folder)
    data.workers, notes, batch = workers, tmp_path / "notes", 12
    with pipeline.train_stream(
        [Noted(sources[0], notes)], [Bucket(1, 32, 32, batch)], data, seed=3
    ) as stream:
        next(stream)
        deadline = time.time() + 30
        while len(notes.read_text().splitlines()) < 2 * batch and time.time() < deadline:
            time.sleep(0.1)
        assert len(notes.read_text().splitlines()) >= 2 * batch


def test_little_shared_memory_changes_nothing(folder, monkeypatch):
    sources, data = opened(folder)
    expected = take(sources, data, 2)
    data.workers = 1
    usage = type("Usage", (), {"free": 0})()
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda path: usage)
    chosen = []
    monkeypatch.setattr(
        grain.experimental,
        "DatasetOptions",
        lambda _original=grain.experimental.DatasetOptions, **options: (
            chosen.append(options) or _original(**options)
        ),
    )
    assert_same(take(sources, data, 2), expected)
    assert chosen[0]["min_shm_size"] > 2**40


def test_the_parts_of_hosts_make_the_batch_of_one(folder):
    """On a pod a host's samples need not be adjacent, and hosts may share one."""
    sources, data = opened(folder)
    whole = take(sources, data, 4)
    held = [{b.name: range(h, b.batch, 2) for b in BUCKETS} for h in range(2)]
    held.append({b.name: [b.batch - 1] for b in BUCKETS})
    for rows in held:
        for update, mine in zip(whole, take(sources, data, 4, rows=rows), strict=True):
            for name, batch in update.batches.items():
                part = mine.batches[name]
                assert part.rows == rows[name] and part.names == [batch.names[row] for row in rows[name]]
                np.testing.assert_array_equal(part.frames, batch.frames[list(rows[name])])


def test_a_resumed_stream_is_the_tail_of_the_straight_one(folder):
    sources, data = opened(folder)
    straight = take(sources, data, 9)
    assert_same(take(sources, data, 4, start_step=5), straight[5:])
    positions = {bucket.name: draws(bucket, 3, 5) * bucket.batch for bucket in BUCKETS}
    assert_same(take(sources, data, 4, start_step=5, positions=positions), straight[5:])
    moved = take(sources, data, 1, start_step=5, positions={PHOTOS.name: 7 * PHOTOS.batch})[0]
    np.testing.assert_array_equal(moved.batches[PHOTOS.name].frames, straight[7].batches[PHOTOS.name].frames)


def test_another_batch_size_continues_the_sequence_of_samples(folder):
    """Batches of 8, then 4, then 16: each starts where the last one ended."""
    sources, data = opened(folder)
    buckets = [Bucket(1, 32, 32, 8), Bucket(5, 24, 32, 2, every=2)]
    found, positions, start = {bucket.name: [] for bucket in buckets}, None, 0
    for batch, steps in ((8, 3), (4, 3), (16, 2), (8, 1)):
        buckets[0] = dataclasses.replace(buckets[0], batch=batch)
        for update in take(sources, data, steps, buckets, start_step=start, positions=positions):
            for name, part in update.batches.items():
                found[name] += part.names
        start += steps
        positions = {name: len(names) for name, names in found.items()}
    assert positions == {"image_32x32": 3 * 8 + 3 * 4 + 2 * 16 + 8, "video_5x24x32": 2 * 4}
    for bucket in buckets:
        sampler = Sampler(sources, bucket, "train", data, seed=3)
        assert found[bucket.name] == [sampler[i].name for i in range(positions[bucket.name])]


def test_another_seed_is_another_order(folder):
    sources, data = opened(folder)
    one, two = take(sources, data, 2, [PHOTOS], seed=0), take(sources, data, 2, [PHOTOS], seed=1)
    assert [u.batches[PHOTOS.name].names for u in one] != [u.batches[PHOTOS.name].names for u in two]
    assert_same(one, take(sources, data, 2, [PHOTOS], seed=0))


def test_an_epoch_has_every_sample_once_in_its_own_order(folder):
    sources, data = opened(folder)
    count = len(candidates(sources[0], PHOTOS, "train", data))
    sampler = Sampler(sources, PHOTOS, "train", data, seed=0)
    epochs = [[sampler[e * count + i].name for i in range(count)] for e in range(3)]
    assert all(len(set(epoch)) == count and set(epoch) == set(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_large_source_has_epochs_too(folder, monkeypatch):
    monkeypatch.setattr("vaejax.data.sampler.FEW", 0)  # the shuffle of large sources
    test_an_epoch_has_every_sample_once_in_its_own_order(folder)


def test_sources_are_drawn_by_their_weights(folder):
    (source,), data = opened(folder)
    twice = [Source("a", 3.0, source.table), Source("b", 1.0, source.table)]
    sampler = Sampler(twice, PHOTOS, "train", data)
    drawn = [sampler._mixture[i][0] for i in range(400)]
    assert drawn.count("a") == 300 and drawn[:40].count("a") == 30


def test_the_logarithm_of_the_zoom_is_uniform_and_crops_differ(folder):
    sources, data = opened(folder)
    crops = [Sampler(sources, PHOTOS, "train", data)._drawn(i)[0] for i in range(300)]
    logs = np.log([crop.zoom for crop in crops]) / math.log(1.5)
    assert logs.min() >= 0 and logs.max() <= 1 and logs.mean() == pytest.approx(0.5, abs=0.06)
    assert len({crop.offset for crop in crops}) == 300


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_file_is_replaced_by_the_same_other_and_named(folder, tmp_path, workers):
    for i in range(6):
        os.link(folder / f"{i}.png", tmp_path / f"{i}.png")
    sources, data = opened(tmp_path)
    bad = sources[0].record(int(candidates(sources[0], PHOTOS, "train", data)[0])).path
    whole = Path(bad).read_bytes()
    os.remove(bad)
    Path(bad).write_bytes(whole[: len(whole) // 2])  # damaged after the folder was scanned
    data.workers = workers
    updates = take(sources, data, 4, [PHOTOS])
    batches = [u.batches[PHOTOS.name] for u in updates]
    assert {path for batch in batches for path, _ in batch.skipped} == {bad}
    assert all(reason for batch in batches for _, reason in batch.skipped)
    assert not any(bad in name for batch in batches for name in batch.names)
    assert all(batch.frames.min() > 10 for batch in batches)
    data.workers = 0
    assert_same(take(sources, data, 4, [PHOTOS]), updates)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_that_becomes_unreadable_ends_a_run_with_one_line(folder, tmp_path, workers):
    for i in range(3):
        os.link(folder / f"{i}.png", tmp_path / f"{i}.png")
    sources, data = opened(tmp_path)
    for i in range(3):
        os.remove(tmp_path / f"{i}.png")
    data.workers = workers
    with pytest.raises(
        TrainingFailed, match=r"data\.buckets\.image_32x32: none of [12] files .*the last: .*\.png: "
    ):
        take(sources, data, 1, [PHOTOS])


class Broken(Source):
    def fetch(self, record):
        raise KeyError("a bug")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unexpected_error_in_a_worker_names_the_file(folder, workers):
    (source,), data = opened(folder)
    data.workers = workers
    with pytest.raises(RuntimeError, match=r"\d\.png: KeyError: 'a bug'"):
        take([Broken("x", 1.0, source.table)], data, 1, [PHOTOS])


def test_held_out_samples_are_fixed_apart_from_training_and_vary_when_files_run_out(folder):
    sources, data = opened(folder)
    for bucket in (PHOTOS, CLIPS):
        batches = list(pipeline.eval_batches(sources, bucket, data, samples=7, batch=4))
        assert [len(batch.frames) for batch in batches] == [4, 3]
        again = np.concatenate([b.frames for b in pipeline.eval_batches(sources, bucket, data, samples=7)])
        frames = np.concatenate([batch.frames for batch in batches])
        np.testing.assert_array_equal(frames, again)
        assert len({frame.tobytes() for frame in frames}) == 7 or bucket is CLIPS  # their frames are flat
    kept = {sources[0].record(int(i)).path for i in candidates(sources[0], PHOTOS, "eval", data)}
    shown = [n.split("@")[0] for b in pipeline.eval_batches(sources, PHOTOS, data, 8) for n in b.names]
    assert set(shown[: len(kept)]) == kept == set(shown)
    trained = {n.split("@")[0] for u in take(sources, data, 4) for n in u.batches[PHOTOS.name].names}
    assert trained and not trained & kept


def test_the_first_held_out_crop_is_the_middle(folder):
    sources, data = opened(folder)
    batch = next(pipeline.eval_batches(sources, PHOTOS, data, 1))
    path = batch.names[0].split("@")[0]
    np.testing.assert_array_equal(batch.frames[0], media.read(path, "image", frames=1, height=32, width=32))


def test_a_batch_names_the_rows_of_its_samples(folder):
    sources, data = opened(folder)
    sampler = Sampler(sources, PHOTOS, "eval", data, middle_first=False)
    first, second = pipeline.read_batches(sampler, 5, 3)
    assert [list(first.rows), list(second.rows)] == [[0, 1, 2], [3, 4]]
    np.testing.assert_array_equal(second.frames[1], sampler[4].frames)
    nothing = Sampler(sources, Bucket(1, 512, 512, 1), "eval", data)
    assert nothing.empty and not list(pipeline.read_batches(nothing, 5, 3))


def test_training_samples_are_the_first_of_the_order(folder):
    sources, data = opened(folder)
    samples = list(pipeline.train_samples(sources, PHOTOS, data, 5, seed=3))
    first = take(sources, data, 2, [PHOTOS])
    frames = np.concatenate([u.batches[PHOTOS.name].frames for u in first])[:5]
    np.testing.assert_array_equal(np.concatenate(samples)[:, None], frames[:, None])
    assert samples[0].shape == (1, 1, 32, 32, 3)


def test_workers_ignore_signals_because_the_parent_saves_first(folder):
    sources, data = opened(folder)
    data.workers = 1
    with pipeline.train_stream(sources, [PHOTOS], data, seed=3) as stream:
        next(stream)
        (worker,) = multiprocessing.active_children()
        for received in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, received)
        for _ in range(6):
            next(stream)
        assert worker.is_alive()


def test_workers_import_no_model_and_no_tensorflow():
    heavy = ["flax", "optax", "tensorflow", "tensorflow_datasets", "vaejax.models"]
    code = f"import sys, vaejax.data.pipeline; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
