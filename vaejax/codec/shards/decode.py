"""Decodes shards of latents to photos and clips."""

import os
import pathlib
import tempfile
from collections.abc import Iterator

from vaejax.codec import media_writer
from vaejax.codec.batch import BatchConverter, progress_bar
from vaejax.codec.codec import Codec
from vaejax.codec.latent_file import EXTENSION
from vaejax.codec.shards.encode import SUMMARY
from vaejax.codec.shards.formats import read, shard_files, write_latent_file
from vaejax.codec.shards.job import leads_out, read_json, relative
from vaejax.codec.tasks import Task, make_folder
from vaejax.errors import InputError


def has_shards(folder: str) -> bool:
    """Whether a path is a folder with shards of latents."""
    return os.path.isfile(os.path.join(folder, SUMMARY))


def decode(source: str, target: str, shard: tuple[int, int], codec: Codec, batch: BatchConverter) -> None:
    """Decodes all samples; OUT gets the paths that the photos and clips had in their collection.

    Args:
      source: folder of the shards.
      target: output folder.
      shard: (I, N), which selects tars or Parquet files I, I + N, ..., counted from 0.
      codec: the VAE.
      batch: runs the tasks.

    Raises:
      InputError: if the latents are those of another model, a shard is damaged, or OUT is not a folder.
    """
    summary = read_json(os.path.join(source, SUMMARY))
    model = summary.get("encoded", {}).get("model")
    if model != codec.fingerprint:
        raise InputError(f"IN = {source}: {codec.wrong_model(str(model))}")
    if os.path.isfile(target):
        raise InputError(f"OUT = {target}: not a folder; accepted: a folder")
    out = make_folder(target)
    with progress_bar(summary.get("files")) as bar:
        for name in shard_files(source)[shard[0] :: shard[1]]:
            with tempfile.TemporaryDirectory(prefix="vaejax-") as scratch:
                tasks = list(_tasks(os.path.join(source, name), pathlib.Path(scratch), out, codec))
                batch.run(tasks, bar)


def _tasks(place: str, scratch: pathlib.Path, out: pathlib.Path, codec: Codec) -> Iterator[Task]:
    """The tasks of a shard, whose samples become latent files in the folder `scratch`."""
    for number, sample in enumerate(read(place, place)):
        latents, name = (
            scratch / f"{number}{EXTENSION}",
            relative(str(sample.metadata.get("path", sample.key))),
        )
        try:
            facts = write_latent_file(sample, latents)
        except (KeyError, ValueError, TypeError, ZeroDivisionError) as error:
            raise InputError(f"{place}: {sample.key}: not latents of vaejax encode") from error
        to = out / (name + media_writer.extension_for(name, facts.kind, codec.architecture.pixel_channels))
        yield Task(latents, to, name, "", to.suffix.lower(), True, leads_out(name))
