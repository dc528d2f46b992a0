"""Orbax checkpoints of a run: each holds the arrays, data positions, configuration and metadata of a step."""

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


class Checkpoints:
    """The checkpoints of a run, DIR/checkpoints/STEP, saved asynchronously and completed atomically.

    A checkpoint consists of named items. The caller's items are trees of arrays. The items 'data', 'config'
    and 'metadata' are JSON.

    Args:
      workdir: DIR, the folder of the run.
      keep: number of latest checkpoints to keep.
      best: evaluation score, 'BUCKET/NAME' or 'mean/NAME', by which the best checkpoint is kept too; a '-' in
        front means that lower is better; '' keeps only the latest.
      read_only: whether to only read a run, which may still be training. Otherwise this process may save, and
        files that a killed save left behind are removed.
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
                best_fn=goodness if best else None,  # without it, Orbax does not store the scores
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def latest(self) -> int | None:
        """The step of the latest completed checkpoint; None if there is none."""
        return self._manager.latest_step()

    def latest_on_all_hosts(self) -> int | None:
        """The latest step that process 0 sees, returned on all processes; None if there is no checkpoint.

        On a shared file system, other hosts may see a new checkpoint later than process 0.
        """
        return distributed.all_gather(self.latest())[0]

    def save(
        self,
        step: int,
        items: Mapping[str, Any],
        positions: dict[str, int],
        config: dict[str, Any],
        scores: Mapping[str, float],
    ) -> None:
        """Saves a checkpoint in the background, unless this step is already saved.

        Returns once the arrays are copied to host memory, before they are written.

        Args:
          step: number of updates done.
          items: {name: tree of arrays}.
          positions: data positions, {bucket name: number of batches drawn so far}.
          config: the configuration as nested dictionaries.
          scores: scores at this step, {'BUCKET/NAME': value}; {} if this step was not evaluated.
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
        """The configuration that a checkpoint was trained with, as nested dictionaries."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]

    def restore(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """Reads items of a checkpoint with the shardings of `targets`, whatever mesh saved them.

        Args:
          step: step of a completed checkpoint.
          targets: {item name: tree of arrays or ShapeDtypeStructs with shardings}.

        Returns:
          The items of `targets` that the checkpoint contains, {name: tree}, and its data positions,
          {bucket name: number of batches drawn so far}.
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
        """A context that waits, when it is left, until the last save is complete."""
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
