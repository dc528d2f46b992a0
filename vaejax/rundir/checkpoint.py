"""Orbax checkpoints: state, data position, configuration and metadata in one composite a step."""

import math
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vaejax import __version__
from vaejax.runtime import mesh as sharding
from vaejax.train.state import TrainState


class Checkpoints:
    """The checkpoints of a run, DIR/checkpoints/STEP, saved asynchronously and each completed atomically.

    Args:
      workdir: DIR.
      keep: how many of the latest stay.
      best: '' or the evaluated number, 'BUCKET/NAME' or 'mean/NAME', whose best checkpoint stays as well;
        '-' before it where lower is better.
      read_only: of another run, which may be under way: nothing is saved, made or tidied up. Otherwise what
        a kill left of an unfinished save goes.
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
                best_fn=goodness if best else None,  # else Orbax forgets the scores when the run ends
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def latest(self) -> int | None:
        """The step of the last completed checkpoint."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, step: int, positions: dict[str, int], config: dict, scores: dict[str, float]
    ):
        """Saves once a step; returns when the state is copied, before it is written.

        Args:
          state: after `step` updates.
          step: the number of updates.
          positions: batches drawn of every bucket.
          config: the resolved configuration, JSON.
          scores: evaluated numbers at this step, 'BUCKET/NAME' to value; {} where not evaluated.
        """
        if step == self.latest():
            return
        items = {
            "state": ocp.args.StandardSave(state.replace(opponents={})),
            "data": ocp.args.JsonSave(positions),
            "config": ocp.args.JsonSave(config),
            "metadata": ocp.args.JsonSave({"vaejax": __version__, "jax": jax.__version__, "step": step}),
        }
        for name, one in state.opponents.items():  # apart, so that a run may get or lose one later
            items[_item(name)] = ocp.args.StandardSave(one)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=scores or None)

    def config(self, step: int) -> dict:
        """The configuration that the checkpoint was trained with."""
        return self._manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore())).config

    def restore(
        self, step: int, state: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict[str, int]]:
        """The state, its shards laid out anew, and the data position.

        Args:
          step: one that exists.
          state: of the same shapes; a discriminator that the checkpoint does not have stays as it is.
          shardings: where every leaf shall lie, whatever mesh saved it.
        """
        self._manager.wait_until_finished()
        target = sharding.placed(state, shardings)
        items = {
            "state": ocp.args.StandardRestore(target.replace(opponents={})),
            "data": ocp.args.JsonRestore(),
        }
        there = self._manager.directory / str(step)
        found = [name for name in state.opponents if (there / _item(name)).exists()]
        items |= {_item(name): ocp.args.StandardRestore(target.opponents[name]) for name in found}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        opponents = state.opponents | {name: restored[_item(name)] for name in found}
        return restored.state.replace(opponents=opponents), restored.data

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception):
        """Waits for the last save to complete."""
        self._manager.wait_until_finished()
        self._manager.close()


def _item(discriminator: str) -> str:
    return f"discriminator_{discriminator}"
