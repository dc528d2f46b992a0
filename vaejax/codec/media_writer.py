"""Clips and photos as files: every frame at its exact time, audio as it was, colours that read back."""

import itertools
import pathlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import BinaryIO

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image

from vaejax.codec import audio as sound
from vaejax.codec.audio import Audio

CLIPS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska", ".webm": "webm"}  # FFmpeg's formats
PHOTOS = {".png": {}, ".jpg": {"quality": 95, "subsampling": 0}, ".jpeg": {"quality": 95, "subsampling": 0}}
PHOTOS[".webp"] = {"quality": 95}
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_BT709, _LIMITED = 1, 1
_ACCURATE = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
# Else x264's assembly for mbtree gives other bytes from one time to the next.
_H264 = {"x264-params": "cpu-independent=1"}
_VP9 = {"b": "0", "row-mt": "1"}
_TICK = Fraction(1, 90000)  # seconds, of a variable rate


def write_photo(file: BinaryIO, extension: str, frame: np.ndarray) -> None:
    """Writes a frame (H, W, 3) as one of `PHOTOS`."""
    Image.fromarray(frame).save(file, FORMATS[extension], **PHOTOS[extension])


def write_clip(
    file: BinaryIO,
    extension: str,
    chunks: Iterable[np.ndarray],
    size: tuple[int, int],
    times: Sequence[float],
    duration: float,
    rate: Fraction,
    constant: bool,
    crf: int,
    audio: Audio | None = None,
) -> str:
    """Writes a clip as H.264, or VP9 in .webm: BT.709, limited range, 4:2:0, or 4:4:4 where a side is odd.

    Args:
      file: open for writing.
      extension: one of `CLIPS`.
      chunks: of frames, uint8 (n, H, W, 3), as many in all as times.
      size: (H, W).
      times: of every frame, seconds, the first 0.
      duration: seconds to the end of the last frame.
      rate: frames a second.
      constant: whether frame i is at i / rate exactly; else times count.
      crf: constant rate factor: lower is better and larger.
      audio: to copy beside it.

    Returns:
      Why audio was left out; else ''.

    Raises:
      av.error.FFmpegError, OSError: if it cannot be written.
      InputError: if the audio cannot be read.
    """
    left_out = ""
    if audio is not None:
        left_out = _obstacle(extension, audio)
        audio = None if left_out else audio
    with av.open(file, "w", format=CLIPS[extension], options=sound.REPRODUCIBLE) as out:
        video = _Video(out, extension, size, times, duration, rate, constant, crf)
        copy = sound.Copy(audio, out) if audio is not None else None
        number = 0
        for chunk in chunks:
            for frame in chunk:
                if copy:
                    copy.until(times[number])
                video.write(frame, number)
                number += 1
        video.end()
        if copy:
            copy.until()
            copy.close()
    return left_out


class _Video:
    """The video stream of a clip."""

    def __init__(self, out, extension, size, times, duration, rate, constant, crf):
        count = len(times)
        if constant:
            tick, ticks = 1 / rate, list(range(count + 1))
        else:
            tick, ticks = _TICK, [round(time / _TICK) for time in (*times, duration)]
        self._lasts = {at: max(1, end - at) for at, end in itertools.pairwise(ticks)}
        webm = extension == ".webm"
        self._out, self._tick, self._ticks = out, tick, ticks
        self._stream = out.add_stream("libvpx-vp9" if webm else "libx264", rate=rate)
        self._stream.height, self._stream.width = size
        self._stream.pix_fmt = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p"
        self._stream.time_base = tick
        self._stream.options = {"crf": str(crf)} | (_VP9 if webm else _H264)
        if not constant and not webm:  # in .mp4 a frame lasts as long as the next coded, not shown, one tells
            self._stream.options |= {"bf": "0"}
        codec = self._stream.codec_context
        codec.time_base = tick
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        self._reformatter = VideoReformatter()

    def write(self, frame: np.ndarray, number: int) -> None:
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
            format=self._stream.pix_fmt,
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED,
            interpolation=_ACCURATE,
            threads=1,
        )
        picture.pts, picture.time_base = self._ticks[number], self._tick
        self._mux(self._stream.encode(picture))

    def end(self) -> None:
        self._mux(self._stream.encode())

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._lasts[packet.pts]  # without, the last frame's is guessed
            self._out.mux(packet)


def _obstacle(extension: str, audio: Audio) -> str:
    """Why audio cannot be copied into a clip, or ''."""
    if not sound.is_whole(audio):
        return "its audio is damaged: left out"
    audio.file.seek(0)
    with av.open(audio.file, format="matroska") as found:
        if sound.holds(CLIPS[extension], found):
            return ""
        codec = sound.codec_name(found.streams.audio[0])
        return f"{extension} cannot hold its audio, {codec}: left out; choose .mkv"


def extension_for(source: str, kind: str) -> str:
    """What is appended to the name of a source so that its kind can be written: '' or an extension."""
    extension = pathlib.PurePath(source).suffix.lower()
    if kind == "image":
        return "" if extension in PHOTOS else ".png"
    return "" if extension in CLIPS else ".mp4"
