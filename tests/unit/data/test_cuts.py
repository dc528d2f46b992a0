"""Cuts are found, and no sample crosses one."""

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import joins
from vaejax.config.schema import DataConfig
from vaejax.data import index, media, prepare
from vaejax.data.bucket import Bucket
from vaejax.data.clip import TOLERANCE
from vaejax.data.kinds.array_record import INDEX_FILE
from vaejax.data.sampler import Sampler
from vaejax.data.sources import check_buckets, held_out_report, open_sources
from vaejax.data.spans import INDEX_COLUMNS, from_index
from vaejax.data.table import Source, candidates
from vaejax.errors import InputError

RATES = (24, Fraction(30000, 1001), 25, 30)
CUTS = DataConfig(cuts=True)


def found(path):
    return media.probe(path, "video", cuts=True)["cuts"]


def test_the_joins_of_clips_are_found_and_little_else(tmp_path):
    """Recall and precision over joins of eight scenes, with fast pans and fades between."""
    true = hits = cuts = 0
    for seed in range(8):
        pictures, firsts = joins.joined(seed)
        path = tmp_path / f"{seed}.{('mp4', 'mkv')[seed % 2]}"
        joins.write(path, pictures, RATES[seed % 4])
        times = found(path)
        frames = [round(time * float(RATES[seed % 4])) for time in times]
        assert np.allclose(times, [frame / float(RATES[seed % 4]) for frame in frames], atol=1e-3)
        true, cuts, hits = true + len(firsts), cuts + len(frames), hits + len({*firsts} & {*frames})
    assert hits / true >= 0.95 and hits / cuts >= 0.95


def test_pans_and_fades_are_no_cuts(tmp_path):
    rng = np.random.default_rng(0)
    parts = [joins.pan(rng, 40) for _ in range(8)] + [joins.faded(scene) for scene in joins.scenes()[:6]]
    for number, pictures in enumerate(parts):
        joins.write(tmp_path / f"{number}.mp4", pictures)
        assert found(tmp_path / f"{number}.mp4") == [], number


def test_cuts_near_the_ends_and_near_each_other_are_found(tmp_path):
    a, b, c = (joins.scenes()[i][:6] for i in (0, 1, 3))
    joins.write(tmp_path / "clip.mp4", np.concatenate([a[:1], b, c[:4], a[:6], b[:1]]))
    assert [round(25 * time) for time in found(tmp_path / "clip.mp4")] == [1, 7, 11, 17]


def test_a_clip_of_one_frame_has_no_cuts(tmp_path):
    joins.write(tmp_path / "clip.mp4", joins.scenes()[0][:1])
    assert found(tmp_path / "clip.mp4") == []


@pytest.mark.parametrize("fps", [24, 30])
def test_no_sample_crosses_a_join(tmp_path, fps):
    """Every part of the clips shows its number. One clip has a variable frame rate."""
    for seed, rate in enumerate(RATES[:3]):
        pictures, firsts = joins.joined(100 + seed, numbered=True)
        steps = np.random.default_rng(seed).integers(25, 60, len(pictures))
        times = np.cumsum(steps) - steps[0] if seed == 2 else None
        joins.write(tmp_path / f"{seed}.mkv", pictures, rate, times)
        true = [times[i] / 1000 for i in firsts] if seed == 2 else [i / float(rate) for i in firsts]
        assert found(tmp_path / f"{seed}.mkv") == pytest.approx(true, abs=1e-3)
    data = DataConfig(media=str(tmp_path), fps=fps, cuts=True)
    bucket = Bucket(9, 54, 96, 1)
    sources = open_sources(data)
    for split, count in (("train", 100), ("eval", 10)):
        sampler = Sampler(sources, bucket, split, data)
        samples = [sampler[i] for i in range(count)]
        assert {len(joins.numbers(sample.frames)) for sample in samples} == {1}
        assert not any(sample.skipped for sample in samples)
    crossing = Sampler(open_sources(dataclasses.replace(data, cuts=False)), bucket, "train", data)
    assert any(len(joins.numbers(crossing[i].frames)) > 1 for i in range(20))


def clip_row(path, times, period, cuts):
    fps = (len(times) - 1) / times[-1]
    size = {"width": 64, "height": 64, "frames": len(times), "fps": fps}
    return size | {"path": path, "kind": "video", "duration": times[-1] + period, "cuts": cuts}


@pytest.mark.parametrize("seed", range(40))
def test_the_first_and_the_last_possible_sample_of_a_span_stay_in_their_scene(seed):
    """Against the frames that a player shows at the times of the samples, at irregular frame times."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(1 / 60, 1 / 12, 120) if seed % 2 else np.full(120, 1 / rng.choice([24, 25, 59.94]))
    times = np.round(np.concatenate([[0.0], np.cumsum(steps)]), 3)
    firsts = np.sort(rng.choice(np.arange(1, len(times)), rng.integers(1, 12), replace=False))
    scene = np.searchsorted(firsts, np.arange(len(times)), side="right")
    seam = rng.choice([0.0, math.inf, rng.uniform(0, times[-1])])
    row = clip_row("a", times, steps[-1], times[firsts].tolist())
    table = from_index(pa.Table.from_pylist([row], INDEX_COLUMNS), np.array([seam]), cuts=True)
    bucket, data = (
        Bucket(int(rng.choice([3, 5, 9])), 64, 64, 1),
        DataConfig(fps=float(rng.choice([12, 24, 30]))),
    )
    source, sides = Source("a", 1.0, table), {}
    for split in ("train", "eval"):
        for number in candidates(source, bucket, split, data):
            record = source.record(int(number))
            length = (bucket.frames - 1) / data.fps
            for moment in (0.0, 0.5, 1.0):
                start = record.start + moment * max(0.0, record.stop - record.start - length)
                wanted = start + np.arange(bucket.frames) / data.fps
                shown = np.searchsorted(times - TOLERANCE, wanted, side="right") - 1
                assert len(set(scene[shown])) == 1, (record, start)
                sides.setdefault(split, set()).update(shown.tolist())
    assert not sides.get("train", set()) & sides.get("eval", set())


def test_a_cut_at_a_frame_that_comes_early_ends_the_last_sample():
    """By the mean frame rate the last frame appears at 0.378 s; two frames appear soon after that."""
    times = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.41])
    row = clip_row("a", times, 0.05, [0.4])
    table = from_index(pa.Table.from_pylist([row], INDEX_COLUMNS), np.array([math.inf]), cuts=True)
    fits = [len(candidates(Source("a", 1.0, table), Bucket(t, 64, 64, 1), "train", CUTS)) for t in (10, 11)]
    assert fits == [1, 0]  # 9/24 s and 10/24 s long


def test_without_data_cuts_the_cuts_of_an_index_have_no_effect():
    times = np.arange(100) / 25
    table = pa.Table.from_pylist([clip_row("a", times, 0.04, [1.0, 2.0])], INDEX_COLUMNS)
    assert len(from_index(table, np.zeros(1))) == 1 and len(from_index(table, np.zeros(1), cuts=True)) == 3
    unknown = table.drop_columns(["cuts"])  # shards of earlier versions
    assert from_index(unknown, np.zeros(1)).to_pylist() == [
        row | {"quality": pytest.approx(math.nan, nan_ok=True)}
        for row in from_index(table, np.zeros(1)).to_pylist()
    ]


def test_evaluation_takes_a_scene_of_every_clip_before_a_second_of_any():
    times = np.arange(250) / 25
    rows = [clip_row(name, times, 0.04, [2.0, 4.0, 6.0, 8.0]) for name in "abc"]
    table = from_index(pa.Table.from_pylist(rows, INDEX_COLUMNS), np.zeros(3), cuts=True)
    source = Source("s", 1.0, table)
    order = Sampler([source], Bucket(9, 64, 64, 1), "eval", CUTS)._candidates[0].tolist()
    records = [source.record(row) for row in order]
    assert [record.start for record in records] == [0] * 3 + [2] * 3 + [4] * 3 + [6] * 3 + [8] * 3
    assert len({record.path for record in records[:3]}) == 3
    (line, _) = held_out_report([source], [Bucket(9, 64, 64, 1)], CUTS)
    assert line == "held out: 3 clips that fit (a, b, c)"  # whole, although most scenes begin later


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for seed in range(2):
        joins.write(folder / f"{seed}.mp4", joins.joined(seed, 3)[0])
    joins.photo("flower.jpg").resize((96, 64)).save(folder / "photo.png")
    return folder


def test_shards_hold_the_cuts_or_say_that_they_do_not(folder, tmp_path):
    """The shards of an earlier version have no column for them."""
    shards = str(tmp_path / "shards")
    prepare.pack(folder, shards, progress=False, with_cuts=True)
    data = DataConfig(sources={"a": {"kind": "array_record", "path": shards}}, cuts=True)
    (packed,), (loose,) = open_sources(data), open_sources(DataConfig(media=str(folder), cuts=True))
    names = ["relative_path", "start", "stop", "held_out"]
    assert packed.table.select(names).equals(loose.table.select(names)) and len(packed.table) > 6
    stored = pq.read_table(f"{shards}/{INDEX_FILE}")
    pq.write_table(stored.drop_columns(["cuts", "scan"]), f"{shards}/{INDEX_FILE}")
    with pytest.raises(InputError, match=r"^data\.sources\.a\.path = .*unknown.*accepted: .*--cuts, or "):
        open_sources(data)
    assert len(open_sources(dataclasses.replace(data, cuts=False))[0].table) == 5


def test_cuts_that_cannot_be_found_are_an_input_error(folder, monkeypatch, capsys):
    data = DataConfig(media=str(folder), cuts=True, scan="headers")
    accepted = "accepted: data.scan = full, or data.cuts = False$"
    with pytest.raises(InputError, match=rf"^data\.cuts = True with data\.scan = headers: .*; {accepted}"):
        open_sources(data)
    for command in (
        lambda: index.main([str(folder), "--cuts", "--scan=headers"]),
        lambda: prepare.main([f"--media={folder}", f"--out={folder}x", "--cuts", "--scan=headers"]),
    ):
        assert command() == 2
        assert capsys.readouterr().err == (
            "error: --cuts with --scan=headers: only decoding whole clips finds cuts; accepted:"
            " --scan=full, or no --cuts\n"
        )
    monkeypatch.setitem(__import__("sys").modules, "scenedetect", None)
    with pytest.raises(
        InputError, match=r"PySceneDetect is not installed; accepted: pip install 'vaejax\[sc"
    ):
        open_sources(dataclasses.replace(data, scan="full"))


def test_scenes_that_are_too_short_do_not_fit(folder):
    data = DataConfig(media=str(folder), cuts=True)
    with pytest.raises(InputError, match=r"no training sample fits; .* the longest \d\.\d\d s \(6\.\d\d s"):
        check_buckets(open_sources(data), [Bucket(161, 64, 64, 1)], data)
