"""Latent files: safetensors that know what they were made of, written and read in parts.

Tensors: 'latent' (t, h, w, c), normalised to mean 0 and standard deviation 1; 'time' (T,) float64, seconds of
every frame from the first; where the clip has audio, 'audio', the bytes of a Matroska file (.mka) of its
packets, and 'audio_time', seconds of every packet from the clip's first frame. 'filler' has no meaning: it
lets the tensor after it begin at a multiple of 8. The header's metadata is `Facts`, as strings.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import struct
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from vaejax.codec.audio import Audio
from vaejax.errors import InputError, one_line

EXTENSION = ".latent"
FORMAT, VERSION = "vaejax.latent", 1
DTYPES = {"float16": "F16", "float32": "F32"}  # by safetensors' names
ACCEPTED = "what python -m vaejax.codec encode writes"


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a latent file's header says: `decode` needs no more than this and the model.

    Attributes:
      kind: 'image' or 'video'.
      frames, height, width: of the source as displayed, T, H and W.
      fps: of a clip, the mean where the rate is variable; None of a photo.
      variable_rate: whether 'time' tells more than fps.
      duration: seconds to the end of the last frame; 0 of a photo.
      mean, std: of each latent channel, (c,): latents are z · std + mean.
      normalised: always True.
      temporal_factor, spatial_factor: of the model.
      padding: {'frames', 'height', 'width'} by how many copies the source was filled up before encoding.
      model: fingerprint of the model.
      source: name of the source's file, without its folder.
      posterior: 'mean', or 'sample' by `seed`.
      seed: None of means.
      audio_tick: seconds, of which the times of audio packets are multiples; None without audio.
      audio_end: of the last packet, seconds from the clip's first frame; None without audio.
    """

    kind: str
    frames: int
    height: int
    width: int
    fps: Fraction | None
    variable_rate: bool
    duration: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    temporal_factor: int
    spatial_factor: int
    padding: dict[str, int]
    model: str
    source: str
    posterior: str = "mean"
    seed: int | None = None
    normalised: bool = True
    audio_tick: Fraction | None = None
    audio_end: float | None = None

    def header(self) -> dict[str, str]:
        """As strings: text and fractions as they are, the rest as JSON; what is None is left out."""
        found = {"format": FORMAT, "version": str(VERSION)}
        for name, value in dataclasses.asdict(self).items():
            if value is not None:
                found[name] = str(value) if isinstance(value, (str, Fraction)) else json.dumps(value)
        return found

    @classmethod
    def of_header(cls, header: dict[str, str]) -> "Facts":
        """The inverse of `header`.

        Raises:
          KeyError, ValueError, TypeError: if it is none.
        """
        found: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in header and field.default is not dataclasses.MISSING:
                continue
            text = header.get(field.name)
            if field.name in ("kind", "model", "source", "posterior"):
                found[field.name] = str(header[field.name])
            elif field.name in ("fps", "audio_tick"):
                found[field.name] = None if text is None else Fraction(text)
            else:
                found[field.name] = json.loads(header[field.name])
        found |= {name: tuple(map(float, found[name])) for name in ("mean", "std")}
        return cls(**found)


class LatentWriter:
    """Writes a latent file as the latents come; memory does not grow with their number.

    Args:
      file: new, open for writing.
      channels: c.
      dtype: of the latents, one of `DTYPES`.
    """

    def __init__(self, file: BinaryIO, channels: int, dtype: str):
        self._file, self._dtype = file, dtype
        self._room = 4096 + 64 * channels  # of the header, which is known at the end
        self._shape: tuple[int, ...] = ()
        self._count = 0
        file.seek(8 + self._room)

    def append(self, latents: np.ndarray) -> None:
        """Adds latents (t, h, w, c)."""
        self._shape = latents.shape[1:]
        self._count += len(latents)
        self._file.write(np.ascontiguousarray(latents, self._dtype).data)

    def end(self, facts: Facts, times: Sequence[float], audio: Audio | None = None) -> None:
        """Adds what comes after the latents, and the header.

        Args:
          facts: for the header; audio's tick is added.
          times: of every frame, seconds from the first.
          audio: of the clip.
        """
        shape = [self._count, *self._shape]
        tensors = {"latent": (DTYPES[self._dtype], shape, 0, self._place())}
        filler = -self._place() % 8
        if filler:
            tensors["filler"] = self._added("U8", bytes(filler), filler)
        tensors["time"] = self._added("F64", np.asarray(times, "<f8").data, len(times))
        if audio is not None:
            tensors["audio_time"] = self._added("F64", np.asarray(audio.times, "<f8").data, len(audio.times))
            start = self._place()
            audio.file.seek(0)
            shutil.copyfileobj(audio.file, self._file, 1 << 20)
            tensors["audio"] = ("U8", [self._place() - start], start, self._place())
            facts = dataclasses.replace(facts, audio_tick=audio.tick, audio_end=audio.end)
        header: dict[str, Any] = {"__metadata__": facts.header()}
        for name, (dtype, shape, start, stop) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(header).encode()
        if len(text) > self._room:
            raise ValueError(f"a header of {len(text)} bytes; accepted: {self._room}")
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))

    def _added(self, dtype: str, data: Any, count: int) -> tuple[str, list[int], int, int]:
        start = self._place()
        self._file.write(data)
        return dtype, [count], start, self._place()

    def _place(self) -> int:
        return self._file.tell() - 8 - self._room


class LatentFile:
    """A latent file, read by slices.

    Args:
      path: of the file.
      name: by which messages call it; '' is the path.

    Attributes:
      facts: of its header.
      shape: of the latents, (t, h, w, c).
      times: of every frame, seconds.
      dtype: of the latents, one of `DTYPES`.

    Raises:
      InputError: one line, for what is no latent file, is damaged or of a later version.
    """

    def __init__(self, path: str | os.PathLike, name: str = ""):
        self._path, self.name = pathlib.Path(path), name or os.fspath(path)
        try:
            self._path.open("rb").close()  # says why it cannot be read, which safetensors does not
            self._file = safe_open(self._path, "numpy")
            header = self._file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{self.name}: no latent file; accepted: {ACCEPTED}")
            if int(header["version"]) > VERSION:
                raise InputError(f"{self.name}: version {header['version']}; accepted: up to {VERSION}")
            self.facts = Facts.of_header(header)
            self._latent = self._file.get_slice("latent")
            self.shape = tuple(self._latent.get_shape())
            self.dtype = {kind: dtype for dtype, kind in DTYPES.items()}[self._latent.get_dtype()]
            self.times = self._file.get_tensor("time")
            self._check()
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or "no latent file"
            raise InputError(f"{self.name}: {reason}; accepted: {ACCEPTED}") from error
        except (SafetensorError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise InputError(
                f"{self.name}: no latent file, or damaged ({one_line(error)}); accepted: {ACCEPTED}"
            ) from error

    def _check(self) -> None:
        f = self.facts
        ft, fs = f.temporal_factor, f.spatial_factor
        wanted = 1 - (1 - f.frames) // ft, -(-f.height // fs), -(-f.width // fs), len(f.mean)
        if self.shape != wanted:
            raise ValueError(f"latents of {self.shape} for {f.frames}x{f.height}x{f.width}")
        if self.times.shape != (f.frames,) or f.kind not in ("image", "video") or len(f.std) != len(f.mean):
            raise ValueError("its header and its tensors disagree")
        if (f.kind == "video") != (f.fps is not None) or (f.fps is not None and f.fps <= 0):
            raise ValueError(f"{f.kind} of {f.fps} fps")

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """The latents in order, `size` latent frames at once, float32 (n, h, w, c)."""
        for start in range(0, self.shape[0], size):
            yield np.asarray(self._latent[start : min(start + size, self.shape[0])], np.float32)

    def audio(self) -> Audio | None:
        """The audio of the clip, or None; its file is the caller's to close.

        Raises:
          InputError: if it is damaged; what is stored of it is not looked into.
        """
        if self.facts.audio_tick is None:
            return None
        try:
            stored, times = self._file.get_slice("audio"), self._file.get_tensor("audio_time")
            (size,) = stored.get_shape()
            end = float(self.facts.audio_end)
        except (SafetensorError, TypeError, ValueError) as error:
            raise InputError(f"{self.name}: its audio is damaged ({one_line(error)})") from error
        file = tempfile.TemporaryFile()  # noqa: SIM115 - given to the caller
        for start in range(0, size, 1 << 20):
            file.write(stored[start : min(start + (1 << 20), size)].data)
        return Audio(file, times, end, self.facts.audio_tick)
