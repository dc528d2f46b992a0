"""The setup of a run: everything that is built from the configuration before there are arrays."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh

from vaejax.config import Config, builders
from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import UpdateStream
from vaejax.data.table import Source
from vaejax.runtime import distributed
from vaejax.runtime import mesh as sharding
from vaejax.train.programs import Programs
from vaejax.train.step import Inject


@dataclasses.dataclass(frozen=True)
class Setup:
    """The mesh, buckets, samples and programs of a run; all processes build the same.

    Attributes:
      config: of the run.
      mesh: of all devices.
      buckets: of the run.
      sources: opened data sources.
      inject: faults that a test injects (train/step.py); None outside of tests.
    """

    config: Config
    mesh: Mesh
    buckets: Sequence[Bucket]
    sources: Sequence[Source]
    inject: Inject | None = None

    @classmethod
    def of(cls, config: Config, inject: Inject | None = None) -> "Setup":
        """Builds the mesh, parses the buckets and opens the sources, process 0 first.

        Raises:
          InputError: for a configuration or media that cannot be used.
          TrainingFailed: if the hosts see different media.
        """
        mesh = sharding.make_mesh(config.mesh)
        buckets = bucket_list(config, mesh)
        opened = distributed.main_process_first(lambda: sources.open_sources(config.data))
        distributed.check_same("photos and clips", lambda: sources.digest(opened))
        sources.check_buckets(opened, buckets, config.data)
        if jax.process_index() == 0:
            for line in sources.not_evaluated(opened, buckets, config.data):
                print(line, file=sys.stderr)
        return cls(config, mesh, buckets, opened, inject)

    @functools.cached_property
    def programs(self) -> Programs:
        """The uncompiled programs of an update."""
        return Programs.of(self.config, self.buckets, self.mesh, self.inject)

    @contextlib.contextmanager
    def batches(self, start: int, positions: Mapping[str, int]) -> Iterator[UpdateStream]:
        """The batches of the updates from `start` on; worker processes end with the block.

        Args:
          start: number of updates done.
          positions: batches drawn of every bucket.
        """
        rows = {b.name: sharding.local_rows(self.mesh, b.batch) for b in self.buckets}
        stream = pipeline.train_stream(
            self.sources,
            self.buckets,
            self.config.data,
            seed=self.config.seed,
            start_step=start,
            positions=positions,
            rows=rows,
        )
        try:
            yield stream
        finally:
            stream.close()


def bucket_list(config: Config, mesh: Mesh) -> tuple[Bucket, ...]:
    """The buckets of a configuration on a mesh."""
    return builders.buckets(config, sharding.batch_parts(mesh), sharding.height_parts(mesh))
