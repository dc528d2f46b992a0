"""A photo or a clip through a codec: to a latent file and back, in memory that stays flat."""

import array
import contextlib
import pathlib
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import BinaryIO, NamedTuple, TypeVar

import av
import jax
import numpy as np

from vaejax import files
from vaejax.codec import audio as sound
from vaejax.codec import frame_rate as rate
from vaejax.codec import media_writer as clip_writer
from vaejax.codec.codec import Codec
from vaejax.codec.latent_file import Facts, LatentFile, LatentWriter
from vaejax.data import media
from vaejax.errors import InputError, one_line

Item = TypeVar("Item")
FRAMES, BYTES = 16, 2**25  # of a chunk, at most, but one frame at least
LATENT_FRAMES = 4  # of a chunk
AHEAD = 2  # chunks that are read before they are needed
_END = object()


class Settings(NamedTuple):
    """How files are encoded and decoded.

    Attributes:
      dtype: of latents, 'float16' or 'float32'.
      seed: of the posterior's samples; None takes its mean.
      crf: of clips.
    """

    dtype: str = "float16"
    seed: int | None = None
    crf: int = 16


class Converter:
    """Encodes and decodes files, several at once if called from several threads.

    Args:
      codec: of which one chunk is worked on at a time.
      settings: of files.
      progress: is told how many frames were done, often.
      tell: is given a line for a person.
    """

    def __init__(
        self,
        codec: Codec,
        settings: Settings,
        progress: Callable[[int], None] = lambda frames: None,
        tell: Callable[[str], None] = lambda line: None,
    ):
        self._codec, self._settings, self._progress, self._tell = codec, settings, progress, tell
        self._device = Lock()

    def encode(self, source: pathlib.Path, target: pathlib.Path, name: str, kind: str) -> None:
        """Encodes a photo or a clip.

        Args:
          source: of kind 'image' or 'video'.
          target: the latent file; what was there is replaced.
          name: by which messages call the source; its last part goes into the header.
          kind: 'image' or 'video'.

        Raises:
          InputError: one line, where it cannot be; then nothing is at `target` that was not before.
        """
        with _told(name, target), files.atomic_file(target) as file:
            self._encode(source, file, name, kind)

    def _encode(self, source: pathlib.Path, file: BinaryIO, name: str, kind: str) -> None:
        a, title = self._codec.architecture, pathlib.PurePath(name).name
        key = None
        if self._settings.seed is not None:  # of each file its own, whatever folder it is reached through
            key = jax.random.key(self._settings.seed)
            key = jax.random.fold_in(key, zlib.crc32(title.encode("utf-8", "surrogateescape")))
        stream = self._codec.stream_encoder(key=key)
        times, damaged = array.array("d"), False
        writer = LatentWriter(file, a.latent_channels, self._settings.dtype)
        found = _frames(source, kind)
        try:
            for frames, chunk_times, end in _ahead(found):
                times.extend(chunk_times)
                duration = end
                with self._device:
                    latents = stream.push(frames)
                writer.append(latents)
                self._progress(len(frames))
        except media.Unreadable as error:
            if not times:
                raise
            damaged = True
            frames = f"{len(times)} frame{'s' * (len(times) > 1)}"
            self._tell(f"{name}: damaged after {frames}, which are kept: {error}")
        with self._device:
            writer.append(stream.flush())
        if kind == "image" and (pictures := media.pictures(source)) > 1:
            self._tell(f"{name}: the first of {pictures} pictures")
        fps, constant, audio = None, True, None
        if kind == "video":
            clock = media.clock(source)
            fps, constant = rate.of(times, clock.rates)
            try:
                audio = sound.copied(str(source), clock.start, duration if damaged else None)
            except InputError as error:
                self._tell(f"{name}: encoded without its {error}")
        fs, ft = a.spatial_factor, a.temporal_factor
        facts = Facts(
            kind=kind,
            frames=stream.frames,
            height=stream.height,
            width=stream.width,
            fps=fps,
            variable_rate=not constant,
            duration=duration,
            mean=tuple(self._codec.mean.tolist()),
            std=tuple(self._codec.std.tolist()),
            temporal_factor=ft,
            spatial_factor=fs,
            padding={
                "frames": -(stream.frames - 1) % ft,
                "height": -stream.height % fs,
                "width": -stream.width % fs,
            },
            model=self._codec.fingerprint,
            source=title.encode("utf-8", "replace").decode(),
            posterior="mean" if key is None else "sample",
            seed=self._settings.seed,
        )
        with contextlib.ExitStack() as stack:
            if audio:
                stack.enter_context(audio.file)
            writer.end(facts, times, audio)
        self._tell_seams(name, stream.disagreement, "of the latents' standard deviation")

    def decode(self, source: pathlib.Path, target: pathlib.Path, name: str, extension: str = "") -> None:
        """Decodes a latent file.

        Args:
          source: the latent file.
          target: of an extension of `clip_writer.PHOTOS` or `CLIPS`; what was there is replaced.
          name: by which messages call the source.
          extension: of the format; '' is the target's.

        Raises:
          InputError: one line, where it cannot be; then nothing is at `target` that was not before.
        """
        found = LatentFile(source, name)
        facts = found.facts
        if facts.model != self._codec.fingerprint:
            raise InputError(f"{name}: {self._codec.another_model(facts.model)}")
        extension = extension or target.suffix.lower()
        accepted = clip_writer.CLIPS if facts.kind == "video" else clip_writer.PHOTOS
        if extension not in accepted:
            what = "a clip" if facts.kind == "video" else "a photo"
            raise InputError(f"{target}: {name} is {what}; accepted: {', '.join(accepted)}")
        size = facts.height, facts.width
        stream = self._codec.stream_decoder((facts.frames, *size))
        chunks = self._decoded(stream, found)
        with _told(name, target), files.atomic_file(target) as file:
            if facts.kind == "image":
                clip_writer.write_photo(file, extension, np.concatenate(list(chunks))[0])
            else:
                self._write_clip(file, extension, _ahead(chunks), found)
        self._tell_seams(name, 127.5 * stream.disagreement, "8-bit levels")

    def reconstruct(
        self, source: pathlib.Path, target: pathlib.Path, name: str, kind: str, extension: str = ""
    ) -> None:
        """Encodes and decodes a photo or a clip; arguments and errors as of `encode` and `decode`."""
        with _told(name, target), files.scratch(target) as latent:
            with open(latent, "w+b") as file:
                self._encode(source, file, name, kind)
            self.decode(latent, target, name, extension)

    def _write_clip(self, file, extension: str, chunks: Iterable[np.ndarray], found: LatentFile) -> None:
        facts = found.facts
        try:
            audio = found.audio()
        except InputError as error:
            audio = None
            self._tell(f"{error}: left out")
        with contextlib.ExitStack() as stack:
            if audio:
                stack.enter_context(audio.file)
            left_out = clip_writer.write_clip(
                file,
                extension,
                chunks,
                (facts.height, facts.width),
                found.times,
                facts.duration,
                facts.fps,
                not facts.variable_rate,
                self._settings.crf,
                audio,
            )
        if left_out:
            self._tell(f"{found.name}: {left_out}")

    def _decoded(self, stream, found: LatentFile) -> Iterator[np.ndarray]:
        for latents in found.chunks(LATENT_FRAMES):
            with self._device:
                frames = stream.push(latents)
            yield frames
            self._progress(len(frames))
        with self._device:
            yield stream.flush()

    def _tell_seams(self, name: str, disagreement: float, unit: str) -> None:
        if disagreement:
            self._tell(f"{name}: tiles disagree by up to {disagreement:.3g} {unit} where they meet")


def _frames(source: pathlib.Path, kind: str) -> Iterator[tuple[np.ndarray, list[float], float]]:
    """Yields uint8 (n, H, W, 3), the frames' times and the end of the last; then damage is raised."""
    frames, times, end, damage = [], [], 0.0, None
    with contextlib.closing(media.stream(source, kind)) as found:
        try:
            for time, period, frame in found:
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


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items, of which a thread makes the next `AHEAD` before they are asked for."""
    with contextlib.closing(items), ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, _END) for _ in range(AHEAD))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(pool.submit(next, items, _END))
            yield item


@contextlib.contextmanager
def _told(name: str, target: pathlib.Path) -> Iterator[None]:
    """Turns whatever is wrong with one file into an InputError of one line that names it."""
    try:
        yield
    except InputError as error:
        told = f"{error}"
        raise InputError(told if told.startswith((name, f"{target}: ")) else f"{name}: {told}") from error
    except media.Unreadable as error:
        raise InputError(f"{name}: {error}") from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise InputError(
            f"{name}: its frames do not fit into the device's memory; accepted: --tile=PIXELS, such as 256"
        ) from error
    except (av.error.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InputError(f"{target}: cannot be written: {reason}") from error
