"""Records of how outputs were made, by which a repeated command decides whether to make an output again.

A record maps names to values: a hash of the source, the model's fingerprint and the settings. The output
itself stores its record, which therefore stays with a file that is moved or copied. A latent file has it in
its header, a photo in the EXIF tag Software, and a clip in its comment. An output is up to date if its record
contains every entry that the command would write. Records do not depend on the folders or times of files.
"""

import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

from PIL import Image

from vaejax.codec.codec import Codec
from vaejax.codec.latent_file import EXTENSION, LatentFile, new_hash
from vaejax.codec.media_writer import PHOTOS
from vaejax.data import frames
from vaejax.errors import InputError, one_line
from vaejax.runtime.content import Content, opened

Record = dict[str, Any]
_PREFIX = "vaejax "  # begins a record in a photo or a clip; JSON follows
_SOFTWARE = 0x0131  # the EXIF tag
# The tags of clips from earlier versions, which stored no record.
_EARLIER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}


class Settings(NamedTuple):
    """Settings of encoded and decoded files.

    Attributes:
      dtype: data type of latents, 'float16' or 'float32'.
      seed: seed for sampling the posterior; None takes the mean of the posterior.
      crf: constant rate factor of clips, 0 to 51; lower means better quality and larger files.
    """

    dtype: str = "float16"
    seed: int | None = None
    crf: int = 16


def of_source(codec: Codec, source: Content, name: str) -> Record:
    """The entries of a latent file's record that its header does not hold in other fields."""
    return {"source": content_hash(source, name), **codec.settings}


def of_latents(codec: Codec, settings: Settings, source: Content, name: str) -> Record:
    """The record of latents encoded from `source`; see `LatentFile.record`."""
    made_by = {"model": codec.fingerprint, "dtype": settings.dtype, "seed": settings.seed}
    return made_by | of_source(codec, source, name)


def of_frames(codec: Codec, settings: Settings, kind: str, latent: Record | str) -> Record:
    """The record of a decoded photo ('image') or clip ('video'); `latent` identifies its latents."""
    record = {"latent": latent, "model": codec.fingerprint, **codec.settings}
    return record | {"crf": settings.crf} if kind == "video" else record


def identity(latents: LatentFile, source: pathlib.Path, name: str) -> Record | str:
    """Identifies latents: by their record, or by a hash of their file if they may have been changed since.

    Unlike the record, the hash also differs between machines that encode the same source, because they round
    differently.
    """
    return latents.record if latents.is_as_encoded() else content_hash(source, name)


def content_hash(content: Content, name: str) -> str:
    """Returns a hash of a file's bytes, as 16 hexadecimal digits.

    Raises:
      InputError: if the file cannot be read.
    """
    try:
        file: Any
        with opened(content) as file:
            return hashlib.file_digest(file, new_hash).hexdigest()
    except OSError as error:
        raise InputError(f"{name}: {error.strerror or one_line(error)}; accepted: a readable file") from error


def changes(found: Record, expected: Record) -> list[str]:
    """Describes the differences between two records in words; ignores entries that `found` lacks."""
    words = []
    for key, value in expected.items():
        if key not in found or found[key] == value:
            continue
        if isinstance(value, dict) and isinstance(found[key], dict):
            words += changes(found[key], value)
        elif key in ("source", "latent"):
            words.append("its source has changed")
        else:
            before, now = ("none" if each is None else each for each in (found[key], value))
            words.append(f"{key} was {before}, now {now}")
    return words


class OtherSettings(InputError):
    """Existing latents were encoded by another model or with other settings."""


def check_encoded(found: Record, expected: Record, name: str) -> None:
    """Raises `OtherSettings`, which names the difference, if latents have another model or other settings."""
    other = {key for key in expected if key != "source" and key in found and found[key] != expected[key]}
    if "model" in other:
        raise OtherSettings(
            f"{name}: already encoded by a different model ({found['model']}); accepted: the same --model and"
            " --step, or another OUT"
        )
    if other:
        seed = "no --seed" if found["seed"] is None else f"--seed={found['seed']}"
        parts = [f"--dtype={found['dtype']}", seed]
        parts += [f"{key} {found[key]}" for key in sorted(other - {"dtype", "seed"})]
        raise OtherSettings(
            f"{name}: already encoded with {' and '.join(parts)}; accepted: the same flags, or another OUT"
        )


# Storage of records -----------------------------------------------------------------------------------------


def text_of(record: Record) -> str:
    """A record as the comment of a clip."""
    return _PREFIX + json.dumps(record)


def exif_of(record: Record) -> Image.Exif:
    """A record as the EXIF data of a photo."""
    exif = Image.Exif()
    exif[_SOFTWARE] = text_of(record)
    return exif


def read(path: pathlib.Path, size: tuple[int, int] | None = None) -> Record:
    """Reads the record of an existing output.

    Args:
      path: a latent file, a photo or a clip.
      size: size (H, W) of the photo or clip that the command would write, if known.

    Returns:
      The record; incomplete or empty for an output of an earlier version of vaejax.

    Raises:
      InputError: if vaejax cannot have written the file.
    """
    if not path.is_file():
        raise _foreign(path)
    if path.suffix == EXTENSION:
        return LatentFile(path).record
    try:
        text, is_bare, found = (_photo_text if path.suffix.lower() in PHOTOS else _clip_text)(path)
    except Exception as error:  # for damaged files, decoders raise exceptions of any type
        raise _foreign(path) from error
    if text.startswith(_PREFIX):
        return _parsed(text)
    if not is_bare or size not in (None, found):
        raise _foreign(path)
    return {}


def _photo_text(path: pathlib.Path) -> tuple[str, bool, tuple[int, int]]:
    """The Software tag, whether the photo has no EXIF data at all, and its size (H, W)."""
    with Image.open(path) as photo:
        exif = photo.getexif()
        return str(exif.get(_SOFTWARE, "")), not exif, (photo.height, photo.width)


def _clip_text(path: str | os.PathLike) -> tuple[str, bool, tuple[int, int]]:
    """The comment, whether the clip has no tags except those of earlier versions, and its size (H, W)."""
    with frames.open_container(path) as container:
        tags = {key.lower(): text for key, text in container.metadata.items()}
        codec = container.streams.video[0].codec_context
        is_bare = tags.keys() <= _EARLIER_TAGS and tags.get("encoder", "Lavf") == "Lavf"
        return tags.get("comment", ""), is_bare, (codec.height, codec.width)


def _parsed(text: str) -> Record:
    """The record in a text that begins with `_PREFIX`; {} if it is damaged."""
    try:
        record = json.loads(text.removeprefix(_PREFIX))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _foreign(path: pathlib.Path) -> InputError:
    return InputError(f"{path}: already there, but not written by vaejax; accepted: another OUT")
