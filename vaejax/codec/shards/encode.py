"""Encodes a collection to shards of latents or to latent files, on this machine or on a cluster."""

import argparse
import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax

from vaejax import cli
from vaejax.codec import origin
from vaejax.codec.batch import Outcome
from vaejax.codec.latent_file import VERSION
from vaejax.codec.load import TrainedVAE, is_run, load_vae
from vaejax.codec.origin import Record, Settings
from vaejax.codec.shards import job as jobs
from vaejax.codec.shards.formats import FORMATS, label_columns
from vaejax.codec.shards.job import Job, Model
from vaejax.codec.tasks import LATENT, PIPE
from vaejax.data import cluster, index, index_file, order
from vaejax.data.kinds.array_record import INDEX_FILE
from vaejax.data.kinds.collection import Collection
from vaejax.data.shards import RECORDS, Shard, plan
from vaejax.data.sources import collection_at
from vaejax.errors import InputError
from vaejax.models.autoencoder import Architecture
from vaejax.models.latent_shape import latent_frames, latent_side
from vaejax.runtime import storage

SUMMARY = "latents.json"  # describes a folder of shards
_FORMAT = "vaejax.latents"
_ERRORS = 20  # refused files whose reasons are printed
Working = Callable[[], AbstractContextManager[threading.Event]]


def encode(flags: argparse.Namespace, options: Sequence[str], working: Working) -> Outcome:
    """Encodes the photos and clips of a collection.

    Args:
      flags: those of the command; IN is a folder, or an entry of data.sources as JSON.
      options: `--runner=NAME` and further options of Beam; () encodes in this process.
      working: a context for the work of this process, of the event that stops it.

    Raises:
      InputError: if the collection, the model or OUT cannot be used.
      TrainingFailed: if a job of Beam fails.
    """
    out = _checked_out(flags)
    collection = collection_at(flags.source, "IN = ")
    collection.check("IN")
    _check_apart(out, collection, flags.format)
    if options:  # the workers need the accelerator
        jax.config.update("jax_platforms", "cpu")
    vae = load_vae(flags.model, flags.step, flags.compute)
    summary = _summary(flags, vae)
    with cli.writing(out, "OUT"):
        _begin(out, summary)
    listed = _listed(options, collection, storage.join(out, f"{RECORDS}/{INDEX_FILE}"), out)
    job = _job(flags, out, collection, listed, vae, summary["encoded"])
    planned = _planned(job, vae.architecture, flags.shard_mb * 1e6)
    del vae  # the workers load it
    complete = [jobs.is_complete(job, shard) for shard in planned]
    kept = list(itertools.compress(planned, complete))
    missing = [shard for shard, is_kept in zip(planned, complete, strict=True) if not is_kept]
    if options:
        jobs.write_on_cluster(options, job, missing)
    else:
        with working() as stop:
            jobs.write_all(job, missing, stop)
    total = jobs.outcome(job, planned, kept)
    _report(jobs.outcome(job, planned if options else kept, ()).refused)
    with cli.writing(out, "OUT"):
        if flags.format == LATENT:
            storage.remove_folder(storage.join(out, RECORDS))
        else:
            jobs.remove_others(job, planned)
            counts = {"files": sum(total.counts.values()) - len(total.refused), "shards": len(planned)}
            jobs.write_json(storage.join(out, SUMMARY), summary | counts | {"complete": True})
    return total


def _checked_out(flags: argparse.Namespace) -> str:
    """OUT as a path or URL; raises InputError if it, or a flag, does not fit the format."""
    if flags.shard != (0, 1):
        raise InputError(
            "--shard: only for a folder of latent files; accepted: --runner=NAME, which uses several machines"
        )
    if flags.target == PIPE:
        raise InputError("OUT = -: not a folder; accepted: a folder")
    out = storage.located(flags.target)
    if storage.is_url(out) and flags.format == LATENT:
        shards = ", ".join(f"--format={name}" for name in FORMATS)
        raise InputError(f"OUT = {out}: a URL; accepted: a folder on disk, or {shards}")
    if os.path.exists(out) and not os.path.isdir(out):
        raise InputError(f"OUT = {out}: not a folder; accepted: a folder")
    return out


def _check_apart(out: str, collection: Collection, form: str) -> None:
    """Raises InputError if the next call would take the shards for a part of the collection."""
    inside = f"{out}/".startswith(f"{storage.located(collection.location)}/")
    if form != LATENT and inside and collection.takes(f"latents{FORMATS[form].extension}"):
        raise InputError(f"OUT = {out}: in the folder IN; accepted: a folder outside it")


def _summary(flags: argparse.Namespace, vae: TrainedVAE) -> dict[str, Any]:
    """The content of `SUMMARY` before the work begins."""
    encoded = {"model": vae.fingerprint, "dtype": flags.dtype, "seed": flags.seed}
    encoded |= {"compute": vae.architecture.dtype, "tile": flags.tile, "overlap": flags.overlap}
    return {
        "format": _FORMAT,
        "version": VERSION,
        "container": flags.format,
        "complete": False,
        "encoded": encoded,
        "mean": None if vae.mean is None else vae.mean.tolist(),
        "std": None if vae.std is None else vae.std.tolist(),
        "temporal_factor": vae.architecture.temporal_factor,
        "spatial_factor": vae.architecture.spatial_factor,
    }


def _begin(out: str, summary: dict[str, Any]) -> None:
    """Writes the summary of shards; raises InputError if OUT has anything but the same kind of latents."""
    place, of_shards = storage.join(out, SUMMARY), summary["container"] != LATENT
    found = jobs.read_json(place)
    if found.get("format") == _FORMAT:
        if found["container"] != summary["container"]:
            accepted = f"--format={found['container']}, or another OUT"
            raise InputError(f"OUT = {out}: already has latents of that format; accepted: {accepted}")
        record: Record = found["encoded"]
        origin.check_encoded(record, summary["encoded"], out)
    elif of_shards and not storage.is_url(out) and os.path.isdir(out) and os.listdir(out):
        accepted = "a new or empty folder, or one with shards of vaejax encode"
        raise InputError(f"OUT = {out}: not empty, but has no {SUMMARY}; accepted: {accepted}")
    if of_shards:
        jobs.write_json(place, summary)


def _listed(options: Sequence[str], collection: Collection, beside: str, out: str) -> str:
    """Path or URL of the index of a collection; `beside` is its place beside the shards."""
    # Encoding decodes every file, so the scan need not.
    if options:
        places = [*index_file.places(collection)[: collection.is_folder], beside]
        return cluster.build_index(options, collection, places, "IN", "headers")
    table = index.load_or_build(collection, name="IN", scan="headers")
    with cli.writing(out, "OUT"):
        index_file.save(order.ordered(table), beside)
    return beside


def _job(
    flags: argparse.Namespace,
    out: str,
    collection: Collection,
    listed: str,
    vae: TrainedVAE,
    encoded: Record,
) -> Job:
    columns = label_columns(listed) if flags.format == "parquet" else ()
    step = vae.step if is_run(flags.model) else flags.step
    path = storage.located(flags.model)
    model = Model(path, step, flags.compute, flags.tile, flags.overlap, vae.fingerprint)
    settings = Settings(flags.dtype, flags.seed)
    return Job(collection, listed, out, flags.format, columns, model, settings, encoded, flags.workers)


def _planned(job: Job, architecture: Architecture, shard_bytes: float) -> list[Shard]:
    extension = "" if job.format == LATENT else FORMATS[job.format].extension
    bytes_of = functools.partial(_latent_bytes, architecture, 2 if job.settings.dtype == "float16" else 4)
    facts = ("frames", "height", "width")
    return list(plan(job.index, shard_bytes, f"latents-{{:05}}{extension}", facts, bytes_of))


def _latent_bytes(architecture: Architecture, item: int, row: dict) -> int:
    frames = latent_frames(row["frames"], architecture.temporal_factor)
    h, w = (latent_side(row[side], architecture.spatial_factor) for side in ("height", "width"))
    return frames * h * w * architecture.latent_channels * item


def _report(refused: dict[str, str]) -> None:
    """Prints why files were refused that this process did not read itself."""
    for reason in list(refused.values())[:_ERRORS]:
        print(f"error: {reason}", file=sys.stderr)
    if len(refused) > _ERRORS:
        print(f"error: {len(refused) - _ERRORS} more, listed in OUT/{RECORDS}", file=sys.stderr)
