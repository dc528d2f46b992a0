"""The setup of a run: what is built from the configuration before any array is on a device."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh

from vaejax.codec.load import TrainedVAE
from vaejax.config import Config
from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket, buckets_of
from vaejax.data.latent_cache import LatentCache
from vaejax.data.mixture import Stretch
from vaejax.data.pipeline import TrainStream
from vaejax.data.split import Split
from vaejax.data.table import Source, candidates
from vaejax.errors import InputError
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import distributed
from vaejax.runtime import mesh as sharding
from vaejax.train import state as states
from vaejax.train.programs import Programs
from vaejax.train.state import TrainState
from vaejax.train.step import Inject


@dataclasses.dataclass(frozen=True)
class Setup:
    """The mesh, buckets, data sources and programs of a run, identical on all processes.

    Attributes:
      config: configuration of the run.
      mesh: mesh of all devices.
      buckets: buckets of the configuration, the sample shapes to train on.
      sources: opened data sources.
      inject: test hook that corrupts values, see `Inject` in train/step.py; or None.
      known: the model of config.init or config.teacher; None without one.
    """

    config: Config
    mesh: Mesh
    buckets: Sequence[Bucket]
    sources: Sequence[Source]
    inject: Inject | None = None
    known: TrainedVAE | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        inject: Inject | None = None,
        folder: RunFolder | None = None,
        known: TrainedVAE | None = None,
    ) -> "Setup":
        """Builds the mesh and buckets and opens the sources; process 0 opens them first and indexes media.

        The split of the media is that of the run in `folder`, which process 0 brings up to date.

        Raises:
          InputError: if the configuration or the media cannot be used.
          TrainingFailed: if the hosts see different media.
        """
        mesh = sharding.make_mesh(config.mesh)
        buckets = bucket_list(config, mesh)
        split = _read_split(config, folder)
        opened = distributed.main_process_first(lambda: sources.open_sources(config.data, split))
        distributed.check_same("photos and clips", lambda: sources.digest(opened))
        sources.check_buckets(opened, buckets, config.data)
        if jax.process_index() == 0:
            if folder:
                split.write(folder.splits)
            for line in split.report() + sources.held_out_report(opened, buckets, config.data):
                print(line, file=sys.stderr)
            if config.loss.weights.anchor and known and known.std is None:
                print(
                    f"note: {known.name} has no latent statistics; loss.weights.anchor assumes a standard"
                    " deviation of 1 in every channel",
                    file=sys.stderr,
                )
        if config.data.latents and known:
            opened = _with_latents(opened, buckets, config, known)
        return cls(config, mesh, buckets, opened, inject, known)

    @functools.cached_property
    def programs(self) -> Programs:
        """The uncompiled programs of an update."""
        return Programs.of(self.config, self.buckets, self.mesh, self.inject, self.known)

    @functools.cached_property
    def initialize(self) -> Callable[[], TrainState]:
        """The function that initializes the train state; compiled once, for the start and all rollbacks."""
        p = self.programs
        return states.initializer(
            p.model, p.optimizer, p.adversary, self.mesh, self.config.seed, p.trained, p.auxiliary
        )

    @contextlib.contextmanager
    def batches(
        self,
        start: int,
        positions: Mapping[str, int],
        histories: Mapping[str, Sequence[Stretch]] | None = None,
    ) -> Iterator[TrainStream]:
        """Yields the stream of batches from update `start` on; worker processes end with the block.

        Args:
          start: number of updates already done.
          positions: number of samples already drawn per bucket.
          histories: the weights of the sources so far, per bucket; see `vaejax.data.mixture`.
        """
        rows = {b.name: sharding.local_rows(self.mesh, b.batch, b.at_once) for b in self.buckets}
        stream = pipeline.train_stream(
            self.sources,
            self.buckets,
            self.config.data,
            seed=self.config.seed,
            start_step=start,
            positions=positions,
            rows=rows,
            histories=histories,
        )
        try:
            yield stream
        finally:
            stream.close()


def _read_split(config: Config, folder: RunFolder | None) -> Split:
    """The split of the run in `folder`; for a new run, that of the run `config.init`."""
    if folder and folder.splits.exists():
        return Split.read(folder.splits)
    # A run of an earlier version has config.json and no splits.parquet: it split its media anew.
    if config.init and not (folder and (folder.path / "config.json").exists()):
        return Split.read(RunFolder(config.init).splits, resumed=False)
    return Split()


def _with_latents(
    opened: Sequence[Source], buckets: Sequence[Bucket], config: Config, known: TrainedVAE
) -> tuple[Source, ...]:
    """The sources, with the latents in data.latents; InputError if no file with latents fits a bucket."""
    factors = known.architecture.spatial_factor, known.architecture.temporal_factor
    cache = LatentCache.of(config.data, known.fingerprint, *factors)
    cached = tuple(dataclasses.replace(source, cache=cache) for source in opened)
    for bucket in buckets:
        if not any(len(candidates(source, bucket, "train", config.data)) for source in cached):
            raise InputError(
                f"data.latents: no training file with latents fits {bucket.name}; accepted: folders that"
                " vaejax encode wrote for data.media, and files at least as large as the bucket"
            )
    return cached


def bucket_list(config: Config, mesh: Mesh) -> tuple[Bucket, ...]:
    """The buckets of a configuration on a mesh."""
    return buckets_of(config, sharding.batch_parts(mesh), sharding.height_parts(mesh))
