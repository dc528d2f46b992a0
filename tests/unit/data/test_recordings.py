"""Transport streams that begin late, lost packets or were joined; the stream and size that players show."""

import av
import numpy as np
import pytest

from tests.support.media_files import number_of, numbered, replace_bytes, write_clip
from vaejax.codec import audio as audio_stream
from vaejax.data import media
from vaejax.data.crop import Unreadable

PACKET = 188  # bytes of a transport stream's packet
FRAMES, RATE, GROUP = 36, 24, 12


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A transport stream of 36 numbered frames with a keyframe every 12."""
    path = tmp_path_factory.mktemp("recording") / "whole.ts"
    options = {"g": f"{GROUP}", "sc_threshold": "0", "bf": "2"}
    return write_clip(path, [numbered(i) for i in range(FRAMES)], RATE, options=options)


def numbers(path, start=0.0, count=1, fps=None):
    height, width = numbered(0).shape[:2]
    frames = media.read(path, "video", frames=count, height=height, width=width, start=start, fps=fps)
    return [number_of(frame) for frame in frames]


def streamed(path):
    return [number_of(frame) for _, _, frame in media.stream(path, "video")]


def video_packets(data):
    """Positions of the packets that belong to the video stream (256 is FFmpeg's first)."""
    return [
        i for i in range(0, len(data), PACKET) if int.from_bytes(data[i + 1 : i + 3], "big") & 0x1FFF == 256
    ]


def group_starts(data):
    """Positions of the packets in which a keyframe begins: random_access_indicator is set."""
    return [i for i in video_packets(data) if data[i + 3] & 0x20 and data[i + 4] and data[i + 5] & 0x40]


def test_the_test_recording_is_read_whole(recording):
    assert streamed(recording) == list(range(FRAMES))
    assert len(group_starts(recording.read_bytes())) == FRAMES // GROUP


def test_a_recording_that_begins_between_keyframes_keeps_its_undamaged_frames(recording, tmp_path):
    data = recording.read_bytes()
    first, second, _ = group_starts(data)
    middle = next(i for i in video_packets(data) if i > first + (second - first) // 2)
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[: video_packets(data)[0]] + data[middle:])
    found = streamed(cut)
    assert (
        found[-24:] == list(range(12, 36))
        and len(found) == len(set(found)) == media.probe(cut, "video")["frames"]
    )
    at = found.index(12) / RATE
    assert numbers(cut, at, 8, RATE) == list(range(12, 20))


def test_frames_that_depend_on_lost_packets_are_never_sampled(recording, tmp_path):
    data = recording.read_bytes()
    _, second, third = group_starts(data)
    inside = [i for i in video_packets(data) if second < i < third]
    lost = inside[len(inside) // 2]
    path = tmp_path / "lost.ts"
    path.write_bytes(data[:lost] + data[lost + 3 * PACKET :])
    assert numbers(path, 0.0, 12, RATE) == list(range(12))
    assert numbers(path, 24 / RATE, 12, RATE) == list(range(24, 36))
    content = media.probe(path, "video")
    assert 24 <= content["frames"] < 36 and content["fps"] == pytest.approx(RATE, rel=0.01)
    assert content["duration"] == pytest.approx(FRAMES / RATE, abs=0.01)
    for start in range(14, 24):
        with pytest.raises(Unreadable, match="damaged"):
            numbers(path, start / RATE, 12, RATE)
    with pytest.raises(Unreadable, match="damaged"):
        streamed(path)


@pytest.fixture(scope="module")
def joined(recording, tmp_path_factory):
    """Two recordings joined byte by byte; the clock of the second begins a minute later."""
    folder = tmp_path_factory.mktemp("joined")
    later = folder / "later.ts"
    with av.open(str(recording)) as source, av.open(str(later), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts + 5_400_000, packet.dts + 5_400_000, stream
                out.mux(packet)
    path = folder / "joined.ts"
    path.write_bytes(recording.read_bytes() + later.read_bytes())
    return path


def test_a_jump_of_the_clock_lasts_one_frame(joined):
    content = media.probe(joined, "video")
    assert content["frames"] == 2 * FRAMES and content["fps"] == pytest.approx(RATE, rel=0.01)
    assert content["duration"] == pytest.approx(2 * FRAMES / RATE, abs=0.01)
    order = [*range(FRAMES)] * 2
    assert streamed(joined) == order
    for start in (0, 5, 30, 36, 41, 50, 60):
        assert numbers(joined, start / RATE, 8, RATE) == order[start : start + 8], start


def test_a_jump_in_a_format_without_discontinuities_stays(tmp_path):
    times = [*range(12), *range(300, 312)]
    path = write_clip(tmp_path / "pause.mp4", [numbered(i) for i in range(24)], 25, times=times)
    assert media.probe(path, "video")["duration"] == pytest.approx(312 / 25, abs=0.01)
    assert numbers(path, 5.0, 2, 1.0) == [11, 11]


def test_audio_crosses_a_jump_with_its_clip(tmp_path):
    path = write_clip(tmp_path / "a.ts", [numbered(i) for i in range(24)], RATE, audio=True)
    later = tmp_path / "b.ts"
    with av.open(str(path)) as source, av.open(str(later), "w") as out:
        streams = [out.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.size:
                shift = round(60 / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = streams[packet.stream_index]
                out.mux(packet)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(path.read_bytes() + later.read_bytes())
    one, two = (audio_stream.copy(str(each), media.clock(each).start, None) for each in (path, joined))
    assert len(two.times) == 2 * len(one.times) and two.end == pytest.approx(2 * one.end, abs=0.1)
    assert (np.diff(two.times) > 0).all() and np.diff(two.times).max() < 0.2


def remuxed(path, sources, default):
    """Puts the video streams of several clips into one file; `default` is the index of the default stream."""
    inputs = [av.open(str(source)) for source in sources]
    with av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(each.streams.video[0]) for each in inputs]
        for number, stream in enumerate(streams):
            stream.disposition = av.stream.Disposition.default if number == default else 0
        for each, stream in zip(inputs, streams, strict=True):
            for packet in each.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    for each in inputs:
        each.close()
    return path


@pytest.mark.parametrize("default", [0, 1, None])
def test_the_default_stream_is_read_or_else_the_largest(tmp_path, default):
    small = write_clip(tmp_path / "small.mp4", [np.full((32, 48, 3), 60, np.uint8)] * 4, 1)
    large = write_clip(tmp_path / "large.mp4", [np.full((64, 96, 3), 180, np.uint8)] * 12)
    content = media.probe(remuxed(tmp_path / "both.mkv", [small, large], default), "video")
    assert (content["width"], content["frames"]) == ((48, 4) if default == 0 else (96, 12))


def test_a_clip_that_changes_its_size_has_the_size_of_its_first_frame(tmp_path):
    parts = []
    for i, shape in enumerate([(64, 96, 3), (32, 48, 3)]):
        part = write_clip(tmp_path / f"{i}.ts", [np.full(shape, 80 + 80 * i, np.uint8)] * 12)
        parts.append(part.read_bytes())
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(parts))
    content = media.probe(path, "video")
    assert (content["height"], content["width"], content["frames"]) == (64, 96, 24)
    frames = [frame for _, _, frame in media.stream(path, "video")]
    assert {frame.shape for frame in frames} == {(64, 96, 3)}
    assert abs(int(frames[0].mean()) - 80) < 3 and abs(int(frames[-1].mean()) - 160) < 3


def add_crop(path, left, top, right, bottom):
    """Puts a crop into the Video element of a Matroska file, in place of elements that FFmpeg writes."""
    crops = zip(("54cc", "54bb", "54dd", "54aa"), (left, top, right, bottom), strict=True)
    old = bytes.fromhex("e08a b08160 ba8140 54b28104 55ee8100 ec01000000000000020000")
    new = bytes.fromhex("e096 b08160 ba8140") + b"".join(
        bytes.fromhex(f"{name}81{n:02x}") for name, n in crops
    )
    new += bytes.fromhex("ec8100")
    assert len(old) == len(new)
    replace_bytes(path, old, new)


def test_the_crop_of_a_matroska_file_is_applied(tmp_path):
    picture = np.full((64, 96, 3), 200, np.uint8)
    picture[8:, 16:] = 60
    path = write_clip(tmp_path / "clip.mkv", [picture] * 30)
    assert media.probe(path, "video")["width"] == 96
    add_crop(path, left=16, top=8, right=4, bottom=2)
    content = media.probe(path, "video")
    assert (content["height"], content["width"], content["frames"]) == (54, 76, 30)
    assert media.headers(path, "video") == pytest.approx(content)
    for file in (path, path.read_bytes()):
        frames = media.read(file, "video", frames=2, height=54, width=76, start=0.4, fps=25)
        assert np.abs(frames[:, 1:, 1:].astype(int) - 60).max() <= 4


@pytest.mark.parametrize(
    ("height", "width", "matrix"), [(576, 720, "601"), (640, 1024, "709"), (544, 1280, "709")]
)
def test_an_untagged_clip_has_the_matrix_that_players_take(tmp_path, height, width, matrix):
    picture = np.full((height, width, 3), (200, 40, 50), np.uint8)
    path = write_clip(tmp_path / "clip.mp4", [picture], drawn=(matrix, "limited"))
    found = media.read(path, "video", frames=1, height=height, width=width)[0, height // 2, width // 2]
    assert np.abs(found.astype(int) - (200, 40, 50)).max() <= 3


def test_a_transparent_clip_is_shown_over_white(tmp_path):
    rgba = np.zeros((32, 48, 4), np.uint8)
    rgba[..., 0] = 200
    rgba[:, :16, 3], rgba[:, 16:32, 3] = 255, 128
    with av.open(str(tmp_path / "clip.mov"), "w") as out:
        stream = out.add_stream("qtrle", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "argb"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        out.mux(stream.encode())
    frame = media.read(tmp_path / "clip.mov", "video", frames=1, height=32, width=48)[0]
    np.testing.assert_allclose(
        frame[16, [8, 24, 40]], [(200, 0, 0), (227, 127, 127), (255, 255, 255)], atol=1
    )
