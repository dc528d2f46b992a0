"""Latent files: safetensors with everything that decoding needs besides the model; written and read in parts.

Tensors:
  latent: (t, h, w, c), normalized to mean 0 and standard deviation 1.
  time: (T,) float64, the time of every frame in seconds from the first frame.
  audio: bytes of a Matroska file (.mka) with the audio packets; only for a clip with audio.
  audio_time: float64, the time of every audio packet in seconds from the clip's first frame.
  filler: meaningless bytes that align the next tensor to a multiple of 8; only if needed.

The metadata in the header are 'format', 'version' and the fields of `Facts`, as strings.
"""

import dataclasses
import hashlib
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
from vaejax.models.latent_shape import latent_frames, latent_side

EXTENSION = ".latent"
FORMAT, VERSION = "vaejax.latent", 1
DTYPES = {"float16": "F16", "float32": "F32"}  # NumPy's name of a data type -> safetensors' name
ACCEPTED = "a file written by python -m vaejax.codec encode"


def new_hash() -> Any:
    """An empty hash, whose `hexdigest` has 16 digits."""
    return hashlib.blake2b(digest_size=8)


@dataclasses.dataclass(frozen=True)
class Facts:
    """The metadata of a latent file. Field names are part of the file format and must not change.

    Decoding needs only these metadata, the tensors and the model.

    Attributes:
      kind: 'image' or 'video'.
      frames, height, width: T, H and W of the source as displayed.
      fps: frames per second of a clip, on average if the rate varies; None for a photo.
      variable_rate: whether frame i is shown at element i of the tensor 'time' rather than at i / fps.
      duration: seconds to the end of the last frame; 0 for a photo.
      mean, std: statistics of each latent channel, (c,); the model decodes latent · std + mean.
      temporal_factor, spatial_factor: frames per latent frame, and pixels per latent pixel along each side.
      padding: {'frames', 'height', 'width'}: number of frames, rows and columns added before encoding.
      model: fingerprint of the model.
      source: name of the source's file, without its folder.
      posterior: 'mean' if the latents are the mean of the posterior, 'sample' if they are a sample of it.
      seed: seed of the sample; None if the latents are the mean.
      normalised: whether the latents are normalized; always True.
      audio_tick: unit of the times of audio packets, in seconds; None without audio.
      audio_end: end of the last audio packet, seconds from the clip's first frame; None without audio.
      origin: {'source', 'compute', 'tile', 'overlap', 'values'}: hash of the source, settings of encoding
        (see origin.py), hash of the latents, which `LatentWriter` adds; None in files of earlier versions.
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
    origin: dict[str, Any] | None = None

    def values(self) -> dict[str, Any]:
        """Returns 'format', 'version', and the fields that are not None; a fraction becomes 'a/b' or 'a'."""
        fields = {name: x for name, x in dataclasses.asdict(self).items() if x is not None}
        fields = {name: str(x) if isinstance(x, Fraction) else x for name, x in fields.items()}
        return {"format": FORMAT, "version": VERSION, **fields}

    def header(self) -> dict[str, str]:
        """Returns `values` as strings: text is kept as it is, any other value becomes JSON."""
        return header_of(self.values())

    @classmethod
    def from_header(cls, header: dict[str, str]) -> "Facts":
        """The inverse of `header`.

        Raises:
          KeyError, ValueError, TypeError, ZeroDivisionError: if the header is not that of a latent file.
        """
        facts: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name not in header and field.default is not dataclasses.MISSING:
                continue
            text = header.get(field.name)
            if field.name in ("kind", "model", "source", "posterior"):
                facts[field.name] = str(header[field.name])
            elif field.name in ("fps", "audio_tick"):
                facts[field.name] = None if text is None else Fraction(text)
            else:
                facts[field.name] = json.loads(header[field.name])
        facts |= {name: tuple(map(float, facts[name])) for name in ("mean", "std")}
        return cls(**facts)


def header_of(values: dict[str, Any]) -> dict[str, str]:
    """The header of a latent file with the metadata `Facts.values`."""
    return {name: x if isinstance(x, str) else json.dumps(x) for name, x in values.items()}


class LatentWriter:
    """Writes a latent file part by part, in memory that does not grow with the number of latents.

    Args:
      file: an empty file, open for writing.
      channels: number of latent channels c.
      dtype: dtype of the latents, a key of `DTYPES`.
    """

    def __init__(self, file: BinaryIO, channels: int, dtype: str):
        self._file, self._dtype = file, dtype
        self._room = 4096 + 64 * channels  # bytes reserved for the header, which is written last
        self._shape: tuple[int, ...] = ()
        self._count = 0
        self._hash = new_hash()
        file.seek(8 + self._room)

    def append(self, latents: np.ndarray) -> None:
        """Writes the next latents, (t, h, w, c)."""
        self._shape = latents.shape[1:]
        self._count += len(latents)
        data = np.ascontiguousarray(latents, self._dtype).data
        self._hash.update(data)
        self._file.write(data)

    def end(self, facts: Facts, times: Sequence[float], audio: Audio | None = None) -> None:
        """Writes the remaining tensors and the header.

        Args:
          facts: the metadata; the fields about audio are set from `audio`.
          times: times of all frames, in seconds from the first frame.
          audio: audio of the clip, or None.
        """
        shape = [self._count, *self._shape]
        tensors = {"latent": (DTYPES[self._dtype], shape, 0, self._offset())}
        filler = -self._offset() % 8
        if filler:
            tensors["filler"] = self._write("U8", bytes(filler), filler)
        tensors["time"] = self._write("F64", np.asarray(times, "<f8").data, len(times))
        if audio is not None:
            tensors["audio_time"] = self._write("F64", np.asarray(audio.times, "<f8").data, len(audio.times))
            start = self._offset()
            audio.file.seek(0)
            shutil.copyfileobj(audio.file, self._file, 1 << 20)
            tensors["audio"] = ("U8", [self._offset() - start], start, self._offset())
            facts = dataclasses.replace(facts, audio_tick=audio.tick, audio_end=audio.end)
        if facts.origin is not None:
            origin = facts.origin | {"values": self._hash.hexdigest()}
            facts = dataclasses.replace(facts, origin=origin)
        header: dict[str, Any] = {"__metadata__": facts.header()}
        for name, (dtype, shape, start, stop) in tensors.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}
        text = json.dumps(header).encode()
        if len(text) > self._room:
            raise ValueError(
                f"{facts.source}: the header of its latent file would have {len(text)} bytes; accepted: at"
                f" most {self._room}; shorten the file's name"
            )
        self._file.seek(0)
        self._file.write(struct.pack("<Q", self._room) + text.ljust(self._room))

    def _write(self, dtype: str, data: Any, count: int) -> tuple[str, list[int], int, int]:
        """Writes a tensor of one axis; returns its dtype, shape, start and stop."""
        start = self._offset()
        self._file.write(data)
        return dtype, [count], start, self._offset()

    def _offset(self) -> int:
        return self._file.tell() - 8 - self._room


class LatentFile:
    """A latent file, opened for reading in slices.

    Args:
      path: path of the file.
      name: name of the file in messages; '' takes its path.

    Attributes:
      facts: metadata of the file.
      shape: shape of the latents, (t, h, w, c).
      times: times of all frames, in seconds from the first frame.
      dtype: data type of the stored latents, a key of `DTYPES`.

    Raises:
      InputError: if the file is not a latent file, cannot be read, is damaged, or has a later format version.
    """

    def __init__(self, path: str | os.PathLike, name: str = ""):
        self._path, self.name = pathlib.Path(path), name or os.fspath(path)
        try:
            self._path.open("rb").close()  # its error gives the reason, unlike that of safetensors
            self._file = safe_open(self._path, "numpy")
            header = self._file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{self.name}: not a latent file; accepted: {ACCEPTED}")
            if int(header["version"]) > VERSION:
                raise InputError(
                    f"{self.name}: format version {header['version']}; accepted: up to {VERSION}; later"
                    " versions need a newer vaejax"
                )
            self.facts = Facts.from_header(header)
            self._latent = self._file.get_slice("latent")
            self.shape = tuple(self._latent.get_shape())
            self.dtype = {kind: dtype for dtype, kind in DTYPES.items()}[self._latent.get_dtype()]
            self.times = self._file.get_tensor("time")
            self._check()
        except InputError:
            raise
        except OSError as error:
            reason = error.strerror or "not a latent file"
            raise InputError(f"{self.name}: {reason}; accepted: {ACCEPTED}") from error
        except (SafetensorError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise InputError(
                f"{self.name}: not a latent file, or damaged ({one_line(error)}); accepted: {ACCEPTED}"
            ) from error

    def _check(self) -> None:
        """Raises ValueError if header and tensors disagree."""
        f = self.facts
        h, w = (latent_side(pixels, f.spatial_factor) for pixels in (f.height, f.width))
        if self.shape != (latent_frames(f.frames, f.temporal_factor), h, w, len(f.mean)):
            raise ValueError(
                f"latents of shape {self.shape} do not fit {f.frames}x{f.height}x{f.width} frames"
            )
        if self.times.shape != (f.frames,) or f.kind not in ("image", "video") or len(f.std) != len(f.mean):
            raise ValueError("its header and its tensors disagree")
        if (f.kind == "video") != (f.fps is not None) or (f.fps is not None and f.fps <= 0):
            raise ValueError(f"fps {f.fps} does not fit kind {f.kind}")
        if not isinstance(f.origin, dict | None):
            raise ValueError("its origin is not a JSON object")

    @property
    def record(self) -> dict[str, Any]:
        """The record of how the latents were made, see origin.py; incomplete in files of earlier versions."""
        made_by = {"model": self.facts.model, "dtype": self.dtype, "seed": self.facts.seed}
        return made_by | {key: x for key, x in (self.facts.origin or {}).items() if key != "values"}

    def is_as_encoded(self) -> bool:
        """Whether the latents are known to be unchanged since they were encoded."""
        digest = new_hash()
        for start in range(0, self.shape[0]):
            digest.update(np.ascontiguousarray(self._latent[start : start + 1]).data)
        return digest.hexdigest() == (self.facts.origin or {}).get("values")

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Yields the latents in order, float32 (n, h, w, c), `size` latent frames at a time."""
        for start in range(0, self.shape[0], size):
            yield np.asarray(self._latent[start : min(start + size, self.shape[0])], np.float32)

    def whole(self) -> np.ndarray:
        """The latents as they are stored, (t, h, w, c), float16 or float32."""
        return self._file.get_tensor("latent")

    def audio(self) -> Audio | None:
        """Reads the clip's audio; the caller must close its `file`. None if the clip has no audio.

        Raises:
          InputError: if the stored audio cannot be read; its packets are not checked.
        """
        if self.facts.audio_tick is None:
            return None
        try:
            stored, times = self._file.get_slice("audio"), self._file.get_tensor("audio_time")
            (size,) = stored.get_shape()
            end = float(self.facts.audio_end)  # type: ignore[arg-type] - None raises TypeError
        except (SafetensorError, TypeError, ValueError) as error:
            raise InputError(f"{self.name}: its audio is damaged ({one_line(error)})") from error
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
        for start in range(0, size, 1 << 20):
            file.write(stored[start : min(start + (1 << 20), size)].data)
        return Audio(file, times, end, self.facts.audio_tick)
