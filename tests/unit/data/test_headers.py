"""A scan of the headers finds what a full scan finds, except damage, which training then works around."""

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.support import media_files
from vaejax.config.schema import DataConfig
from vaejax.data import index, index_file, media
from vaejax.data.bucket import Bucket
from vaejax.data.kinds import demo
from vaejax.data.sampler import Sampler
from vaejax.data.sources import open_sources

NUMBERED = [media_files.numbered(i) for i in range(50)]
CLIPS = {
    "h264.mp4": {},
    "fragmented.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "sound.mkv": {"audio": True},
    "ntsc.mkv": {"rate": Fraction(30000, 1001)},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.mov": {},
    "sound.ts": {"audio": True},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "no_clock.m2v": {"codec": "mpeg2video"},
    "h264.flv": {},
    "wmv2.wmv": {"codec": "wmv2"},
}


def same(path):
    """Compares the two scans of a file."""
    kind = media.kind_of(path)
    full, quick = media.probe(path, kind), media.headers(path, kind)
    period = 0 if kind == "image" else 1 / full["fps"]
    assert quick == full | {
        "duration": pytest.approx(full["duration"], abs=period),
        "fps": full["fps"] and pytest.approx(full["fps"], rel=0.01),
        "frames": pytest.approx(full["frames"], abs=1),
        "bits_per_pixel": pytest.approx(full["bits_per_pixel"], rel=0.05),
    }


@pytest.mark.parametrize("name", CLIPS)
def test_the_packets_of_a_clip_tell_its_length(tmp_path, name):
    options = dict(CLIPS[name])
    same(media_files.write_clip(tmp_path / name, NUMBERED, options.pop("rate", 25), **options))


def test_the_demo_has_the_same_rows_by_its_headers():
    for name in demo.names():
        same(demo.path(name))
    tables = [
        open_sources(DataConfig(sources={"demo": {"kind": "demo"}}, scan=scan))[0].table
        for scan in ("full", "headers")
    ]
    for column in tables[0].column_names:
        full, quick = (table[column].to_pylist() for table in tables)
        assert quick == (pytest.approx(full, nan_ok=True) if isinstance(full[0], float) else full), column


def test_turned_photos_unusual_clips_and_wrong_headers_are_measured_alike(tmp_path):
    """The header of one AVI counts 444 frames instead of 50; one clip has a variable frame rate."""
    files = media_files.make(tmp_path)
    for name in files.keys() - media_files.UNREADABLE - {"cut_short.mp4"}:
        same(files[name])


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.avif", "a.jpg", "a.png", "a.tif", "a.bmp"])
def test_photos_and_animations_are_measured_by_their_headers(tmp_path, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [Image.fromarray(media_files.numbered(i)) for i in range(3)]
    animated = (
        {"save_all": True, "append_images": pictures[1:]} if name[2:] in ("gif", "webp", "avif") else {}
    )
    turned = {"exif": exif} if name[2:] in ("jpg", "png", "webp", "tif") else {}
    pictures[0].save(tmp_path / name, **animated, **turned)
    same(tmp_path / name)
    height, width = (96, 64) if turned else (64, 96)
    found = media.headers(tmp_path / name, "image")
    assert (found["height"], found["width"], found["frames"]) == (height, width, 1)


def test_a_clip_that_was_trimmed_without_encoding_has_the_frames_that_are_shown(tmp_path):
    """Its first 30 frames stay in the file, because the others are predicted from them."""
    import av

    source = media_files.write_clip(tmp_path / "whole.mp4", NUMBERED, options={"g": "50"})
    whole = {"options": {"avoid_negative_ts": "disabled"}}
    with av.open(str(source)) as old, av.open(str(tmp_path / "trimmed.mp4"), "w", **whole) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.pts -= int(1.2 / packet.time_base)
                packet.dts -= int(1.2 / packet.time_base)
                packet.stream = stream
                new.mux(packet)
    assert media.headers(tmp_path / "trimmed.mp4", "video")["frames"] == 20
    same(tmp_path / "trimmed.mp4")


def test_only_the_start_and_the_end_of_a_large_clip_are_read(tmp_path):
    """The middle of the clip is overwritten; the headers do not notice, the full scan does."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 96, 3), np.uint8)
    path = media_files.write_clip(tmp_path / "clip.mp4", list(noise), movflags="faststart")
    sound = media.headers(path, "video")
    damage(path)
    assert media.headers(path, "video") == sound and media.probe(path, "video")["frames"] < 60


def damage(path):
    """Overwrites a tenth of a file in its middle."""
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size // 10))


def test_damage_that_the_headers_hide_is_named_and_replaced_in_training(tmp_path):
    """In each kind one file of four is broken. One more photo ends in its header, which the scan notices."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 96, 3), np.uint8)
    for number in range(4):
        media_files.write_clip(tmp_path / f"{number}.mp4", list(noise), movflags="faststart")
        Image.fromarray(noise[number]).save(tmp_path / f"{number}.png")
    damage(tmp_path / "0.mp4")
    media_files.keep(tmp_path / "0.png", 0.5)
    (tmp_path / "4.png").write_bytes((tmp_path / "1.png").read_bytes()[:20])
    data = DataConfig(media=str(tmp_path), holdout=0, scan="headers", fps=25)
    sources = open_sources(data)
    assert [os.path.basename(path) for path, _ in sources[0].unreadable] == ["4.png"]
    for bucket, broken in ((Bucket(9, 64, 96, 1), "0.mp4"), (Bucket(1, 64, 96, 1), "0.png")):
        sampler = Sampler(sources, bucket, "train", data)
        samples = [sampler[i] for i in range(24)]
        replaced = {os.path.basename(path) for sample in samples for path, _ in sample.skipped}
        assert replaced == {broken}
        used = {os.path.basename(sample.name.partition("@")[0]) for sample in samples}
        assert len(used - {broken}) == 3


@pytest.mark.parametrize("frames, duration", [(500, 20.0), (2, 0.05)], ids=["too long", "too short"])
def test_a_wrong_length_costs_samples_and_not_the_run(tmp_path, monkeypatch, frames, duration):
    for number in range(2):
        media_files.write_clip(tmp_path / f"{number}.mp4", NUMBERED)
    data = DataConfig(media=str(tmp_path), holdout=0, scan="headers", fps=25)
    table = index.load_or_build(tmp_path, 1, False, scan="headers")
    rows = table.to_pylist()
    rows[0] |= {"frames": frames, "duration": duration}
    index_file.save(table.from_pylist(rows, table.schema), str(tmp_path / index.INDEX_FILE))
    sampler = Sampler(open_sources(data), Bucket(9, 64, 96, 1), "train", data)
    samples = [sampler[i] for i in range(20)]
    assert {sample.frames.shape for sample in samples} == {(9, 64, 96, 3)}
    reasons = [reason for sample in samples for _, reason in sample.skipped]
    assert bool(reasons) == (frames == 500) and all("the clip ends early" in reason for reason in reasons)
