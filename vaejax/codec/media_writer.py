"""Writes photos and clips. Clips keep their audio and the time of every frame."""

import itertools
import pathlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import Interpolation, VideoReformatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vaejax.codec import audio as audio_stream
from vaejax.codec.audio import Audio
from vaejax.data import color

# Extension -> FFmpeg's name of the format.
CLIPS = {".mp4": "mp4", ".mov": "mov", ".m4v": "mp4", ".mkv": "matroska", ".webm": "webm"}
_JPEG = {"quality": 95, "subsampling": 0}
PHOTOS: dict[str, dict[str, Any]] = {  # extension -> Pillow's options
    ".png": {},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": {"quality": 95},
}
WITH_ALPHA = (".png", ".webp", ".mov", ".webm")  # the extensions that keep alpha
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}

_BT709, _LIMITED = 1, 1
_ACCURATE = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP
# Without this option x264's assembly for mbtree does not give the same bytes every time.
_H264 = {"x264-params": "cpu-independent=1"}
_VP9 = {"b": "0", "row-mt": "1"}
# FFmpeg's name of the encoder and of the pixel format in which each extension keeps alpha.
_ALPHA = {".mov": ("prores_ks", "yuva444p10le"), ".webm": ("libvpx-vp9", "yuva420p")}
_TICK = Fraction(1, 90000)  # time unit of clips with a variable frame rate, seconds


def write_photo(file: BinaryIO, extension: str, frame: np.ndarray, exif: Image.Exif | None = None) -> None:
    """Writes a frame, (H, W, C) uint8 sRGB, in the format of `extension`, one of `accepted`."""
    options = dict(PHOTOS[extension])
    if exif:
        options["exif"] = exif
    if extension == ".png":
        chunks = PngInfo()
        chunks.add(b"sRGB", b"\0")  # perceptual intent
        options["pnginfo"] = chunks
    else:
        options["icc_profile"] = color.srgb_icc()
    Image.fromarray(frame).save(file, FORMATS[extension], **options)


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
    comment: str = "",
    channels: int = 3,
) -> str:
    """Writes a clip as H.264, or VP9 in .webm: BT.709, limited range, 4:2:0, or 4:4:4 if a side is odd.

    A clip with alpha is written as ProRes 4444 in .mov, or VP9 with alpha in .webm, 4:2:0.

    Args:
      file: file open for writing.
      extension: one of `accepted`.
      chunks: arrays of frames, uint8 (n, H, W, C), in total as many frames as times.
      size: size (H, W) of the frames.
      times: times of all frames in seconds; the first is 0.
      duration: seconds to the end of the last frame.
      rate: frames per second.
      constant: whether frame i is shown at i / rate; otherwise at times[i].
      crf: constant rate factor, 0 to 51; lower means better quality and larger files. ProRes has none.
      audio: audio to copy into the clip, or None.
      comment: the comment among the clip's tags, or ''.
      channels: C, 3 for RGB or 4 for RGB and straight alpha.

    Returns:
      The reason why audio was left out, or ''.

    Raises:
      av.error.FFmpegError, OSError: if the file cannot be written.
      InputError: if the audio cannot be read.
    """
    left_out = ""
    if audio is not None:
        left_out = _why_audio_is_left_out(extension, audio)
        audio = None if left_out else audio
    with av.open(file, "w", format=CLIPS[extension], options=audio_stream.REPRODUCIBLE) as out:
        if comment:
            out.metadata["comment"] = comment
        video = _Video(out, extension, (*size, channels), times, duration, rate, constant, crf)
        muxer = audio_stream.Muxer(audio, out) if audio is not None else None
        number = 0
        for chunk in chunks:
            for frame in chunk:
                if muxer:
                    muxer.write_until(times[number])
                video.write(frame, number)
                number += 1
        video.end()
        if muxer:
            muxer.write_until()
            muxer.close()
    return left_out


class _Video:
    """The video stream of a clip."""

    def __init__(
        self,
        out: OutputContainer,
        extension: str,
        size: tuple[int, int, int],
        times: Sequence[float],
        duration: float,
        rate: Fraction,
        constant: bool,
        crf: int,
    ):
        count = len(times)
        if constant:
            tick, ticks = 1 / rate, list(range(count + 1))
        else:
            tick, ticks = _TICK, [round(time / _TICK) for time in (*times, duration)]
        self._durations: dict[Any, int] = {at: max(1, end - at) for at, end in itertools.pairwise(ticks)}
        height, width, channels = size
        encoder = "libvpx-vp9" if extension == ".webm" else "libx264"
        pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        if channels == 4:
            encoder, pix_fmt = _ALPHA[extension]
        options = {"libx264": {"crf": str(crf), **_H264}, "libvpx-vp9": {"crf": str(crf), **_VP9}}
        self._out, self._tick, self._ticks = out, tick, ticks
        self._format = "rgba" if channels == 4 else "rgb24"
        self._stream: Any = out.add_stream(encoder, rate=rate)
        self._stream.height, self._stream.width, self._stream.pix_fmt = height, width, pix_fmt
        self._stream.time_base = tick
        self._stream.options = options.get(encoder, {})
        if not constant and encoder == "libx264":  # B-frames would get wrong durations in .mp4
            self._stream.options |= {"bf": "0"}
        codec = self._stream.codec_context
        codec.time_base = tick
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        self._reformatter = VideoReformatter()

    def write(self, frame: np.ndarray, number: int) -> None:
        """Encodes frame `number`, (H, W, C) uint8."""
        picture = self._reformatter.reformat(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=self._format),
            format=self._stream.pix_fmt,
            dst_colorspace=_BT709,
            dst_color_range=_LIMITED,
            interpolation=_ACCURATE,
            threads=1,
        )
        picture.pts, picture.time_base = self._ticks[number], self._tick
        self._mux(self._stream.encode(picture))

    def end(self) -> None:
        """Writes the frames that the encoder still buffers."""
        self._mux(self._stream.encode())

    def _mux(self, packets: Iterable[av.Packet]) -> None:
        for packet in packets:
            packet.duration = self._durations[packet.pts]  # otherwise FFmpeg guesses the last one's duration
            self._out.mux(packet)


def _why_audio_is_left_out(extension: str, audio: Audio) -> str:
    """The reason why audio cannot be copied into a clip, or ''."""
    if not audio_stream.is_undamaged(audio):
        return "its audio is damaged; decoded without audio"
    audio.file.seek(0)
    with av.open(audio.file, "r", format="matroska") as container:
        if audio_stream.can_hold(CLIPS[extension], container):
            return ""
        codec = audio_stream.codec_name(container.streams.audio[0])
        reason = f"{extension} cannot hold audio codec {codec}; decoded without audio"
        return f"{reason}; choose .mkv to keep the audio"


def accepted(kind: str, channels: int = 3) -> list[str]:
    """The extensions of photos ('image') or clips ('video') that keep all channels, the usual one first."""
    extensions = PHOTOS if kind == "image" else CLIPS
    return [extension for extension in extensions if channels == 3 or extension in WITH_ALPHA]


def extension_for(source: str, kind: str, channels: int = 3) -> str:
    """The extension to append to the file name `source`; '' if it already has one of `accepted`."""
    extensions = accepted(kind, channels)
    return "" if pathlib.PurePath(source).suffix.lower() in extensions else extensions[0]
