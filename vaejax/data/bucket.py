"""Buckets: the sample shapes of a run, and the steps at which each is drawn."""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from vaejax.data.crop import MEDIA_CHANNELS
from vaejax.errors import InputError

_NAME = re.compile(r"image_([1-9]\d*)x([1-9]\d*)|video_([1-9]\d*)x([1-9]\d*)x([1-9]\d*)")
_FIELDS = ("batch", "weight", "every", "micro")


@dataclasses.dataclass(frozen=True)
class Bucket:
    """A sample shape (T, H, W, C), with its batch size and schedule.

    Attributes:
      frames: T; an image is a video of one frame.
      height: H, pixels.
      width: W, pixels.
      batch: samples per batch, over all hosts.
      weight: weight of this bucket's loss in the loss of an update.
      every: period of the bucket in steps: one batch is drawn every `every` steps.
      channels: C, of all buckets of a run: 3 for RGB, 4 for RGB and alpha.
      micro: samples of a batch, over all hosts, whose gradients are computed at once; 0 for all.
    """

    frames: int
    height: int
    width: int
    batch: int
    weight: float = 1.0
    every: int = 1
    channels: int = 3
    micro: int = 0

    @property
    def at_once(self) -> int:
        """Number of samples, over all hosts, whose gradients are computed at once."""
        return self.micro or self.batch

    @property
    def kind(self) -> str:
        """'image' or 'video'."""
        return "image" if self.frames == 1 else "video"

    @property
    def name(self) -> str:
        """'image_HxW' or 'video_TxHxW'."""
        size = f"{self.height}x{self.width}"
        return f"image_{size}" if self.frames == 1 else f"video_{self.frames}x{size}"

    @property
    def pixels(self) -> int:
        """Number of pixels of one sample, T·H·W."""
        return self.frames * self.height * self.width


def parse_buckets(
    config_buckets: Mapping[str, Any],
    spatial_factor: int,
    temporal_factor: int,
    shards: int = 1,
    space: int = 1,
    channels: int = 3,
) -> tuple[Bucket, ...]:
    """Parses the buckets of a configuration; returns those with a batch above 0, sorted by name.

    Args:
      config_buckets: {name: {batch, weight, every, micro}}; a batch of 0 turns a bucket off.
      spatial_factor: spatial downsampling factor of the model; H and W must be multiples of it.
      temporal_factor: temporal downsampling factor of the model; T must be 1 + temporal_factor·k.
      shards: number of parts into which the mesh divides every batch.
      space: number of parts into which the mesh divides each shard: by samples if possible, else by height.
      channels: pixel channels of the model.

    Raises:
      InputError: if a bucket is invalid, all batches are 0, no bucket is drawn at every step, or media cannot
        supply the channels.
    """
    if channels not in MEDIA_CHANNELS:
        raise InputError(
            f"model.pixel_channels = {channels}; accepted: 3 (RGB) or 4 (RGB and alpha), which photos and"
            " clips have"
        )
    parsed = [
        _parse(name, fields, spatial_factor, temporal_factor, shards, space)
        for name, fields in config_buckets.items()
    ]
    if not parsed:
        raise InputError(
            "data.buckets is empty; accepted: at least one image_HxW or video_TxHxW, e.g. image_256x256"
        )
    drawn = (dataclasses.replace(b, channels=channels) for b in parsed if b.batch)
    buckets = tuple(sorted(drawn, key=lambda b: b.name))
    if not buckets:
        raise InputError(
            "data.buckets: every batch is 0 (off); accepted: at least one bucket with a batch of 1 or more"
        )
    if all(b.every > 1 for b in buckets):
        # Then some steps might draw no bucket.
        named = ", ".join(f"data.buckets.{b.name}.every = {b.every}" for b in buckets)
        raise InputError(f"{named}; accepted: every = 1 for at least one bucket, so that no step is empty")
    return buckets


def buckets_of(config: Any, shards: int = 1, space: int = 1) -> tuple[Bucket, ...]:
    """Returns the buckets of a whole configuration; for `shards` and `space` see `parse_buckets`."""
    model = config.model
    factors = model.spatial_factor, model.temporal_factor
    return parse_buckets(config.data.buckets, *factors, shards, space, model.pixel_channels)


def scheduled(buckets: Sequence[Bucket], seed: int, step: int) -> tuple[Bucket, ...]:
    """The buckets that draw a batch at `step`; a pure function, so all processes agree."""
    return tuple(b for b in buckets if step % b.every == _first_step(b, seed))


def draws(bucket: Bucket, seed: int, step: int) -> int:
    """The number of batches that `bucket` draws before `step`."""
    return (step - _first_step(bucket, seed) + bucket.every - 1) // bucket.every


def _first_step(bucket: Bucket, seed: int) -> int:
    """The first step that draws a bucket; a hash of the name spreads buckets of equal period."""
    # Unlike hash(), crc32 is the same in every process.
    return zlib.crc32(f"{seed}/{bucket.name}".encode()) % bucket.every


def _parse(name: str, fields: Any, spatial: int, temporal: int, shards: int, space: int) -> Bucket:
    key = f"data.buckets.{name}"
    match = _NAME.fullmatch(name)
    if not match:
        raise InputError(
            f"{key}: not a valid bucket name; accepted: image_HxW or video_TxHxW, e.g. image_256x256"
        )
    if not hasattr(fields, "items"):
        raise InputError(
            f"{key} = {fields!r}; accepted: {{batch, weight, every, micro}}, e.g. {{'batch': 8}}"
        )
    fields = dict(fields.items())
    for field in fields:
        if field not in _FIELDS:
            raise InputError(f"{key}.{field}: no such field; accepted: {', '.join(_FIELDS)}")
    if "batch" not in fields:
        raise InputError(f"{key}.batch is missing; accepted: samples per batch over all devices, or 0 (off)")
    frames, height, width = (int(g) for g in (("1", *match.groups()[:2]) if match[1] else match.groups()[2:]))
    if match[3] and frames == 1:
        raise InputError(f"{key}: T = 1 is an image; accepted: image_{height}x{width}")
    if (frames - 1) % temporal:
        accepted = _nearest(frames - 1, temporal, offset=1)
        raise InputError(f"{key}: T = {frames}; accepted: 1 + {temporal}k (nearest: {accepted})")
    if height % spatial:
        raise InputError(
            f"{key}: H = {height}; accepted: multiples of {spatial} (nearest: {_nearest(height, spatial)})"
        )
    if width % spatial:
        raise InputError(
            f"{key}: W = {width}; accepted: multiples of {spatial} (nearest: {_nearest(width, spatial)})"
        )
    batch, weight, every = fields["batch"], fields.get("weight", 1.0), fields.get("every", 1)
    micro = fields.get("micro", 0)
    if not _whole(batch, 0):
        raise InputError(f"{key}.batch = {batch!r}; accepted: a whole number, 0 (off) or more")
    if batch % shards:
        accepted = _nearest(batch, shards)
        raise InputError(
            f"{key}.batch = {batch}; accepted: multiples of mesh.data x mesh.fsdp = {shards}, the number of"
            f" parts into which a batch is divided (nearest: {accepted})"
        )
    _check_micro(key, micro, batch, shards)
    unit, (field, at_once) = spatial * space, ("micro", micro) if micro else ("batch", batch)
    if at_once % (shards * space) and height % unit:
        raise InputError(
            f"{key}: H = {height} with {field} = {at_once}; accepted: an H that is a multiple of"
            f" {spatial} x mesh.space = {unit} (nearest: {_nearest(height, unit)}), or a {field} that is a"
            f" multiple of {shards * space}"
        )
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not (math.isfinite(weight) and weight >= 0)
    ):
        raise InputError(f"{key}.weight = {weight!r}; accepted: a finite number, 0 or more")
    if not _whole(every, 1):
        raise InputError(f"{key}.every = {every!r}; accepted: a whole number of steps, 1 or more")
    return Bucket(frames, height, width, batch, float(weight), every, micro=micro)


def _check_micro(key: str, micro: Any, batch: int, shards: int) -> None:
    if not _whole(micro, 0) or (micro and (batch % micro or micro % shards)):
        raise InputError(
            f"{key}.micro = {micro!r}; accepted: 0 (the whole batch), or a divisor of batch = {batch} that is"
            f" a multiple of mesh.data x mesh.fsdp = {shards}"
        )


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _nearest(value: int, unit: int, offset: int = 0) -> str:
    """The positive multiples of `unit` on both sides of `value`, plus `offset`, as text."""
    below, above = value // unit * unit, -(-value // unit) * unit
    return f"{below + offset} or {above + offset}" if below else f"{above + offset}"
