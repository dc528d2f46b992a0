"""Orbax checkpoints: arrays, data positions, configuration and metadata of one step in one composite."""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vaejax import __version__
from vaejax.runtime import distributed

_JSON_ITEMS = ("data", "config", "metadata")


class Checkpoints:
    """The checkpoints of a run, DIR/checkpoints/STEP, saved asynchronously and completed atomically.

    The arrays are opaque trees, one per item; what they mean is up to the caller.

    Args:
      workdir: DIR.
      keep: number of latest checkpoints to keep.
      best: '' or the score, 'BUCKET/NAME' or 'mean/NAME', whose best checkpoint is kept as well; a '-' in
        front means that lower is better.
      read_only: open another run, which may still be training; nothing is saved, created or cleaned up.
        Otherwise the remains of a save that was killed are removed.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 1, best: str = "", read_only: bool = False):
        policies: list[Any] = [preservation_policy.LatestN(keep)]
        name, sign = best.removeprefix("-"), -1 if best.startswith("-") else 1

        def goodness(scores: dict[str, float]) -> float:
            return sign * scores.get(name, -sign * math.inf)

        if best:
            policies.append(
                preservation_policy.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
            )
        self._manager = ocp.CheckpointManager(
            pathlib.Path(workdir).expanduser().absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                best_fn=goodness if best else None,  # otherwise Orbax drops the scores at the end of the run
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def latest(self) -> int | None:
        """The step of the latest completed checkpoint."""
        return self._manager.latest_step()

    def latest_on_all_hosts(self) -> int | None:
        """Process 0's latest step: hosts may see a shared file system at different times."""
        return distributed.all_gather(self.latest())[0]

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        positions: dict[str, int],
        config: dict[str, Any],
        scores: Mapping[str, float],
    ) -> None:
        """Saves once per step; returns when the arrays are copied, before they are written.

        Args:
          step: number of updates.
          items: trees of arrays by name.
          positions: batches drawn of every bucket.
          config: the configuration, as JSON has it.
          scores: scores at this step, 'BUCKET/NAME' to value; {} without an evaluation.
        """
        if step == self.latest():
            return
        arguments: dict[str, Any] = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        arguments |= {
            "data": ocp.args.JsonSave(positions),
            "config": ocp.args.JsonSave(config),
            "metadata": ocp.args.JsonSave({"vaejax": __version__, "jax": jax.__version__, "step": step}),
        }
        self._manager.save(step, args=ocp.args.Composite(**arguments), metrics=dict(scores) or None)

    def config(self, step: int) -> dict[str, Any]:
        """The configuration that a checkpoint was trained with, as JSON has it."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """Reads the items of a checkpoint, sharded as their targets are, whatever mesh saved them.

        Args:
          step: an existing one.
          targets: trees of arrays or ShapeDtypeStructs with shardings, by name.

        Returns:
          The items that the checkpoint has, and its data positions.
        """
        self._manager.wait_until_finished()
        folder = self._manager.directory / str(step)
        found = [name for name in targets if (folder / name).exists()]
        arguments: dict[str, Any] = {
            name: ocp.args.StandardRestore(_abstract(targets[name])) for name in found
        }
        arguments["data"] = ocp.args.JsonRestore()
        restored = self._manager.restore(step, args=ocp.args.Composite(**arguments))
        return {name: restored[name] for name in found}, restored["data"]

    @contextlib.contextmanager
    def completing(self) -> Iterator[None]:
        """On leaving the block, waits until the last save is complete."""
        try:
            yield
        finally:
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception):
        self._manager.wait_until_finished()
        self._manager.close()


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
