"""Encodes photos and clips to latent files and decodes them; memory use does not grow with their length."""

import array
import contextlib
import pathlib
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from threading import Lock
from typing import Any, BinaryIO, NamedTuple, TypeVar

import jax
import numpy as np
from av.error import FFmpegError

from vaejax import files
from vaejax.codec import audio as audio_stream
from vaejax.codec import frame_rate, media_writer, origin
from vaejax.codec.codec import Codec
from vaejax.codec.latent_file import Facts, LatentFile, LatentWriter
from vaejax.codec.origin import Record, Settings
from vaejax.codec.stream import StreamDecoder, StreamEncoder
from vaejax.data import media
from vaejax.data.crop import MEDIA_CHANNELS
from vaejax.errors import InputError, one_line
from vaejax.runtime.content import Content

Item = TypeVar("Item")
FRAMES, BYTES = 16, 2**25  # a chunk has at most this many frames and bytes, but at least one frame
LATENT_FRAMES = 4  # latent frames that are decoded at a time
AHEAD = 2  # chunks that are read before they are needed
_END = object()


class Unwritable(InputError):
    """An output cannot be written, through no fault of its source."""


class _Timing(NamedTuple):
    """When the frames of a source are shown, and whether damage ends the source early."""

    times: array.array  # seconds of every frame, from the first
    duration: float  # seconds to the end of the last frame
    damaged: bool


class Converter:
    """Encodes and decodes files; safe to call from several threads.

    Args:
      codec: the model, which processes one chunk at a time.
      settings: settings of the written files.
      progress: function called often with the number of frames just finished.
      report: function called with each line for the user.

    Raises:
      InputError: if files have fewer channels than the model.
    """

    def __init__(
        self,
        codec: Codec,
        settings: Settings,
        progress: Callable[[int], None] = lambda frames: None,
        report: Callable[[str], None] = lambda line: None,
    ):
        self._codec, self._settings, self._progress, self._report = codec, settings, progress, report
        self._device, self._channels = Lock(), codec.architecture.pixel_channels
        if self._channels not in MEDIA_CHANNELS:
            raise InputError(
                f"{codec.name}: a model of {self._channels} pixel channels; accepted: one of 3 (RGB) or 4"
                " (RGB and alpha), which photos and clips have; in Python it encodes arrays"
            )

    def encode(self, source: Content, target: pathlib.Path, name: str, kind: str) -> None:
        """Encodes a photo or a clip.

        Args:
          source: the photo or clip.
          target: the latent file, replaced if it exists.
          name: name of the source in messages. The latent file records it without its folders.
          kind: 'image' or 'video'.

        Raises:
          InputError: if the source cannot be encoded; `target` is then unchanged.
        """
        with _one_line_errors(name, target), files.atomic_file(target) as file:
            self._encode(source, file, name, kind)

    def _encode(self, source: Content, file: BinaryIO, name: str, kind: str) -> None:
        title = pathlib.PurePath(name).name
        key = None
        if self._settings.seed is not None:  # noise depends on the file's name, not on its folder
            key = jax.random.key(self._settings.seed)
            key = jax.random.fold_in(key, zlib.crc32(title.encode("utf-8", "surrogateescape")))
        record = origin.of_source(self._codec, source, name)
        stream = self._codec.stream_encoder(key=key)
        writer = LatentWriter(file, self._codec.architecture.latent_channels, self._settings.dtype)
        timing = self._encode_frames(source, kind, name, stream, writer)
        if kind == "image" and (pictures := media.pictures(source)) > 1:
            self._report(f"{name}: only the first of {pictures} pictures is encoded")
        fps, constant, audio = None, True, None
        if kind == "video":
            clock = media.clock(source)
            fps, constant = frame_rate.estimate(timing.times, clock.rates)
            try:
                end = timing.duration if timing.damaged else None
                audio = audio_stream.copy(source, clock.start, end)
            except InputError as error:
                self._report(f"{name}: encoded without audio: {error}")
        with contextlib.ExitStack() as stack:
            if audio:
                stack.enter_context(audio.file)
            facts = self._facts(kind, title, stream, timing, fps, constant, record)
            writer.end(facts, timing.times, audio)
        self._report_seams(name, stream.disagreement, "standard deviations of the latents")

    def _encode_frames(
        self, source: Content, kind: str, name: str, stream: StreamEncoder, writer: LatentWriter
    ) -> _Timing:
        """Encodes all frames of a source, or those before its first damage."""
        times, duration, damaged = array.array("d"), 0.0, False
        try:
            for frames, chunk_times, end in _read_ahead(_frames(source, kind, self._channels)):
                times.extend(chunk_times)
                duration = end
                with self._device:
                    latents = stream.push(frames)
                writer.append(np.asarray(latents))
                self._progress(len(frames))
        except media.Unreadable as error:
            if not times:
                raise
            damaged = True
            frames = f"{len(times)} frame{'s' * (len(times) > 1)}"
            self._report(f"{name}: damaged after {frames}, which are kept: {error}")
        with self._device:
            writer.append(np.asarray(stream.flush()))
        return _Timing(times, duration, damaged)

    def _facts(
        self,
        kind: str,
        title: str,
        stream: StreamEncoder,
        timing: _Timing,
        fps: Fraction | None,
        constant: bool,
        record: Record,
    ) -> Facts:
        """The header of the latent file of an encoded stream."""
        codec, a, seed = self._codec, self._codec.architecture, self._settings.seed
        assert codec.mean is not None and codec.std is not None  # stream_encoder has checked this
        padding = a.padding(stream.frames, stream.height, stream.width)
        return Facts(
            kind=kind,
            frames=stream.frames,
            height=stream.height,
            width=stream.width,
            fps=fps,
            variable_rate=not constant,
            duration=timing.duration,
            mean=tuple(codec.mean.tolist()),
            std=tuple(codec.std.tolist()),
            temporal_factor=a.temporal_factor,
            spatial_factor=a.spatial_factor,
            padding=dict(zip(("frames", "height", "width"), padding, strict=True)),
            model=codec.fingerprint,
            source=title.encode("utf-8", "replace").decode(),
            posterior="mean" if seed is None else "sample",
            seed=seed,
            origin=record,
        )

    def decode(self, source: pathlib.Path, target: pathlib.Path, name: str, extension: str = "") -> None:
        """Decodes a latent file.

        Args:
          source: the latent file.
          target: the photo or clip, replaced if it exists.
          name: name of the source in messages.
          extension: format to write, one of `media_writer.accepted`; '' takes that of the target.

        Raises:
          InputError: if the source cannot be decoded; `target` is then unchanged.
        """
        latents = self.opened(source, name)
        facts = latents.facts
        extension = extension or target.suffix.lower()
        accepted = media_writer.accepted(facts.kind, self._channels)
        if extension not in accepted:
            what = "a clip" if facts.kind == "video" else "a photo"
            what += " with alpha" if self._channels == 4 else ""
            raise InputError(
                f"{target}: {name} is {what}; accepted: a name that ends in {', '.join(accepted)}"
            )
        stream = self._codec.stream_decoder((facts.frames, facts.height, facts.width))
        chunks = self._decode_frames(stream, latents)
        identity = origin.identity(latents, source, name)
        record = origin.of_frames(self._codec, self._settings, facts.kind, identity)
        with _one_line_errors(name, target), files.atomic_file(target) as file:
            if facts.kind == "image":
                photo = np.concatenate(list(chunks))[0]
                media_writer.write_photo(file, extension, photo, origin.exif_of(record))
            else:
                comment = origin.text_of(record)
                self._write_clip(file, extension, _read_ahead(chunks), latents, comment)
        self._report_seams(name, 127.5 * stream.disagreement, "8-bit levels")

    def opened(self, source: pathlib.Path, name: str) -> LatentFile:
        """Opens a latent file.

        Raises:
          InputError: if the file cannot be read, or comes from a different model.
        """
        latents = LatentFile(source, name)
        if latents.facts.model != self._codec.fingerprint:
            raise InputError(f"{name}: {self._codec.wrong_model(latents.facts.model)}")
        return latents

    def reconstruct(
        self, source: Content, target: pathlib.Path, name: str, kind: str, extension: str = ""
    ) -> None:
        """Encodes and decodes a photo or a clip; arguments and errors as for `encode` and `decode`."""
        with _one_line_errors(name, target), files.scratch(target) as latent:
            with open(latent, "w+b") as file:
                self._encode(source, file, name, kind)
            self.decode(latent, target, name, extension)

    def _write_clip(
        self,
        file: BinaryIO,
        extension: str,
        chunks: Iterable[np.ndarray],
        latents: LatentFile,
        comment: str,
    ) -> None:
        facts = latents.facts
        assert facts.fps is not None  # `LatentFile` checks that a clip has a frame rate
        try:
            audio = latents.audio()
        except InputError as error:
            audio = None
            self._report(f"{error}; decoded without audio")
        with contextlib.ExitStack() as stack:
            if audio:
                stack.enter_context(audio.file)
            left_out = media_writer.write_clip(
                file,
                extension,
                chunks,
                (facts.height, facts.width),
                latents.times,
                facts.duration,
                facts.fps,
                not facts.variable_rate,
                self._settings.crf,
                audio,
                comment,
                self._channels,
            )
        if left_out:
            self._report(f"{latents.name}: {left_out}")

    def _decode_frames(self, stream: StreamDecoder, latents: LatentFile) -> Generator[np.ndarray]:
        for chunk in latents.chunks(LATENT_FRAMES):
            with self._device:
                frames = stream.push(chunk)
            yield np.asarray(frames)
            self._progress(len(frames))
        with self._device:
            yield np.asarray(stream.flush())

    def _report_seams(self, name: str, disagreement: float, unit: str) -> None:
        if disagreement:
            self._report(
                f"{name}: tiles differ from their blend by a mean of up to {disagreement:.3g} {unit}"
            )


def _frames(source: Content, kind: str, channels: int) -> Generator[tuple[np.ndarray, list[float], float]]:
    """Yields chunks of a source; if the source is damaged, raises media.Unreadable after the last chunk.

    Yields:
      Frames uint8 (n, H, W, C), the time of each, and the end of the last, in seconds from the first frame.
    """
    frames, times, end, damage = [], [], 0.0, None
    stream: Any = media.stream(source, kind, channels)
    with contextlib.closing(stream) as decoded:
        try:
            for time, period, frame in decoded:
                frames.append(frame)
                times.append(time)
                end = time + period
                if len(frames) >= max(1, min(FRAMES, BYTES // frame.nbytes)):
                    yield np.stack(frames), times, end
                    frames, times = [], []
        except media.Unreadable as error:
            damage = error
    if frames:
        yield np.stack(frames), times, end
    if damage:
        raise damage


def _read_ahead(items: Generator[Item]) -> Iterator[Item]:
    """Yields the items; a thread computes the next `AHEAD` of them in advance."""
    with contextlib.closing(items), ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Any]] = deque(pool.submit(next, items, _END) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item


@contextlib.contextmanager
def _one_line_errors(name: str, target: pathlib.Path) -> Iterator[None]:
    """Turns expected errors about a file into a one-line InputError that names it; other errors pass."""
    try:
        yield
    except Unwritable:
        raise
    except InputError as error:
        message = f"{error}"
        named = message.startswith((name, f"{target}: "))
        raise InputError(message if named else f"{name}: {message}") from error
    except media.Unreadable as error:
        raise InputError(f"{name}: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"{name}: its frames do not fit into the device's memory; accepted: --tile=PIXELS, e.g. 512, or a"
            " smaller tile if --tile is already set"
        ) from error
    except (FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise Unwritable(f"{target}: cannot be written: {reason}") from error
