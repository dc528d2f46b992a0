"""Orbax checkpoints of a run: each holds the arrays, data positions, configuration and metadata of a step.

Those of a run in a bucket are in the bucket. Paths are epath's, which are pathlib's for files on disk.
"""

import contextlib
import functools
import math
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from vaejax import __version__
from vaejax.errors import InputError, TrainingFailed, one_line
from vaejax.rundir import mirror, wholeness
from vaejax.rundir.positions import from_json, to_json
from vaejax.rundir.wholeness import Contents, DamagedCheckpoint
from vaejax.runtime import distributed, storage

T = TypeVar("T")
_say_once = functools.cache(distributed.say)  # one command may read a run several times


class SavedCheckpoints:
    """Reads the completed checkpoints of a run, DIR/checkpoints/STEP; the run may still be training.

    A checkpoint consists of named items. The caller's items are trees of arrays. The items 'data', 'config'
    and 'metadata' are JSON.

    Args:
      workdir: path of DIR, the folder of the run, or of the mirror of one in a bucket.
    """

    def __init__(self, workdir: str | os.PathLike):
        self._workdir = pathlib.Path(mirror.local(workdir)).absolute()
        self._parent = mirror.checkpoints(self._workdir)
        self._damaged: set[int] = set()

    def folder(self, step: int) -> pathlib.Path:
        """The folder of a checkpoint, an epath.Path."""
        return self._parent / str(step)

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are not known to be damaged, in ascending order."""
        return [step for step in mirror.saved_steps(self._workdir) if step not in self._damaged]

    def latest(self) -> int | None:
        """The step of the latest checkpoint that is not known to be damaged; None if there is none."""
        return max(self.steps(), default=None)

    def latest_on_all_hosts(self) -> int | None:
        """The latest step that process 0 sees, returned on all processes; None if there is no checkpoint.

        On a shared file system, other hosts may see a new checkpoint later than process 0.
        """
        return distributed.all_gather(self.latest())[0]

    def newest_whole(self, use: Callable[[int | None], T], on_all_hosts: bool = True) -> T:
        """Calls `use` with the latest step, and again with an earlier one if that checkpoint is damaged.

        Args:
          use: function of a step, or of None if there is no checkpoint; it may raise DamagedCheckpoint.
          on_all_hosts: whether all processes make this call and need the same step.

        Returns:
          The result of the last call.

        Raises:
          InputError: if all checkpoints are damaged.
        """
        while True:
            try:
                return use(self.latest_on_all_hosts() if on_all_hosts else self.latest())
            except DamagedCheckpoint as damage:
                self._pass_over(damage)

    def config(self, step: int) -> dict[str, Any]:
        """The configuration that a checkpoint was trained with, as nested dictionaries.

        Raises:
          DamagedCheckpoint: if it cannot be read.
        """
        return self._contents(step).json["config"]

    def restore(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """Reads items of a checkpoint with the shardings of `targets`, whatever mesh saved them.

        Args:
          step: step of a completed checkpoint.
          targets: {item name: tree of arrays or ShapeDtypeStructs with shardings}.

        Returns:
          The items of `targets` that the checkpoint contains, {name: tree}, and its data positions,
          {bucket name: number of samples drawn so far}.

        Raises:
          DamagedCheckpoint: on all processes, if the checkpoint is damaged.
        """
        folder, contents = self.folder(step), self._contents(step)
        restored: dict[str, Any] = {}
        shares: dict[str, dict[str, int]] = {}
        failure, handler = None, cast(Any, ocp.StandardCheckpointHandler())
        try:
            with wholeness.reading():
                for name in (name for name in targets if name in contents.arrays):
                    # Not with the manager: its processes would wait here for a process that failed to read.
                    arguments = ocp.args.StandardRestore(_abstract(targets[name]))
                    restored[name] = handler.restore(folder / name, args=arguments)
                    shares[name] = wholeness.of_arrays(restored[name])
        except Exception as error:  # Orbax raises bare Exceptions
            failure = error
        answers = distributed.all_gather([failure is None, shares])
        if not all(succeeded for succeeded, _ in answers):
            self.verify(step)
            raise failure or TrainingFailed(f"{folder}: another process cannot read this checkpoint")
        for name in restored:
            sums = wholeness.total([of_process[name] for _, of_process in answers])
            wholeness.check_arrays(folder, contents, name, sums)
        return restored, from_json(contents.json["data"], contents.json["config"])

    def verify(self, step: int) -> None:
        """Reads a whole checkpoint on process 0.

        Raises:
          DamagedCheckpoint: on all processes, if the checkpoint is damaged.
        """
        self._on_process_0(step, wholeness.verify)

    def _contents(self, step: int) -> Contents:
        return Contents(*self._on_process_0(step, wholeness.read_contents))

    def _on_process_0(self, step: int, work: Callable[[pathlib.Path], T]) -> T:
        """Calls `work` with a checkpoint's folder on process 0; all processes get its result or its error."""
        result, reason, folder = None, "", self.folder(step)
        if jax.process_index() == 0:
            try:
                result = work(folder)
            except DamagedCheckpoint as damage:
                reason = damage.reason
        result, reason = distributed.all_gather([result, reason])[0]
        if reason:
            raise DamagedCheckpoint(folder, reason)
        return result

    def _pass_over(self, damage: DamagedCheckpoint) -> None:
        """Prints that a checkpoint is damaged, and no longer lists it.

        Raises:
          InputError: if no other checkpoint is left.
        """
        self._damaged.add(int(damage.folder.name))
        if not damage.folder.exists():  # the run has just deleted it, and saved a newer one
            return
        if not self.steps():
            raise InputError(
                f"{damage.folder}: damaged checkpoint ({damage.reason}), and no other is left; accepted: a"
                " run with an undamaged checkpoint"
            )
        _say_once(f"{damage.folder}: damaged checkpoint ({damage.reason}); an earlier one is used")


class Checkpoints(SavedCheckpoints):
    """The checkpoints that a run saves, asynchronously, and each completed atomically.

    Damaged checkpoints are moved to DIR/damaged, and files that a killed save left behind are removed.

    Args:
      workdir: DIR, the folder of the run.
      keep: number of latest checkpoints to keep.
      best: evaluation score, 'BUCKET/NAME' or 'mean/NAME', by which the best checkpoint is kept too; a '-' in
        front means that lower is better; '' keeps only the latest.

    Raises:
      InputError: if all checkpoints are damaged.
    """

    def __init__(self, workdir: str | os.PathLike, keep: int = 1, best: str = ""):
        super().__init__(workdir)
        self._manager: Any = None
        if jax.process_index() == 0:
            # Partial saves. Orbax would remove them in a thread, which prints a traceback at a quick exit.
            for path in mirror.unfinished(self._workdir):
                with contextlib.suppress(OSError):
                    path.rmtree()
        for step in reversed(distributed.all_gather(self.steps())[0]):
            try:
                self._contents(step)
            except DamagedCheckpoint as damage:  # Orbax would fail to read its scores
                self._pass_over(damage)
        policies: list[Any] = [preservation_policy.LatestN(keep)]
        name, sign = best.removeprefix("-"), -1 if best.startswith("-") else 1

        def goodness(scores: dict[str, float]) -> float:
            return sign * scores.get(name, -sign * math.inf)

        if best:
            policies.append(
                preservation_policy.BestN(get_metric_fn=goodness, n=1, keep_checkpoints_without_metrics=False)
            )
        self._manager = ocp.CheckpointManager(
            self._parent,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                best_fn=goodness if best else None,  # without it, Orbax does not store the scores
                cleanup_tmp_directories=False,
            ),
        )

    def latest(self) -> int | None:
        """The step of the latest checkpoint, which may still be being written; None if there is none."""
        return self._manager.latest_step()

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
          positions: data positions, {bucket name: number of samples drawn so far}.
          config: the configuration as nested dictionaries.
          scores: scores at this step, {'BUCKET/NAME': value}; {} if this step was not evaluated.
        """
        if step == self.latest():
            return
        shares = distributed.all_gather({name: wholeness.of_arrays(item) for name, item in items.items()})
        checksums: dict[str, Any] = {name: wholeness.total([s[name] for s in shares]) for name in items}
        data = to_json(positions)
        checksums |= {"data": wholeness.of_json(data), "config": wholeness.of_json(config)}
        checksums["metrics"] = wholeness.of_json(dict(scores))
        metadata = {"vaejax": __version__, "jax": jax.__version__, "step": step}
        arguments: dict[str, Any] = {name: ocp.args.StandardSave(item) for name, item in items.items()}
        arguments |= {
            "data": ocp.args.JsonSave(data),
            "config": ocp.args.JsonSave(config),
            "metadata": ocp.args.JsonSave(metadata | {wholeness.CHECKSUMS: checksums}),
        }
        self._manager.save(step, args=ocp.args.Composite(**arguments), metrics=dict(scores) or None)

    def restore(self, step: int, targets: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
        """Waits for a save in progress, then reads items of a checkpoint; see `SavedCheckpoints.restore`."""
        self._manager.wait_until_finished()
        return super().restore(step, targets)

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

    def _pass_over(self, damage: DamagedCheckpoint) -> None:
        """Moves a damaged checkpoint to DIR/damaged/STEP and says so. All processes call this together.

        Raises:
          InputError: if no other checkpoint is left; this one then stays in its place.
        """
        step = int(damage.folder.name)
        if distributed.all_gather(self.steps())[0] == [step]:
            raise InputError(
                f"{damage.folder}: damaged checkpoint ({damage.reason}), and no other is left; accepted:"
                " another --workdir; or delete the folder 'checkpoints' in this one, to start from step 0"
            )
        if jax.process_index() == 0:
            aside = self._parent.parent / "damaged" / str(step)
            number = 1
            while aside.exists():
                aside, number = aside.with_name(f"{step}-{number}"), number + 1
            storage.move(str(damage.folder), str(aside))
            distributed.say(f"{damage.folder}: damaged checkpoint ({damage.reason}); moved to {aside}")
        distributed.all_gather("moved")
        while damage.folder.exists():  # a network file system may show it to other hosts for some time
            time.sleep(1)
        if self._manager:
            self._manager.reload()


def check_saves(workdir: str | os.PathLike) -> None:
    """Saves a number, on this process alone, in the bucket of a run without checkpoints, and deletes it.

    Orbax and TensorStore have their own ways to the bucket, which the first checkpoint should not be the
    first to try.

    Args:
      workdir: the mirror of the run.

    Raises:
      InputError: if Orbax cannot save there.
    """
    if mirror.saved_steps(workdir):
        return
    parent = mirror.checkpoints(workdir).parent
    trial, process = parent / f"trial-{secrets.token_hex(4)}", jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix="trial"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    try:
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(trial / "0", args=ocp.args.StandardSave({"number": np.zeros(1)}))
    except Exception as error:  # of TensorStore, Orbax, gcsfs or s3fs
        raise InputError(
            f"--workdir={parent}: Orbax {ocp.__version__} cannot save checkpoints there ({one_line(error)});"
            " accepted: gs://BUCKET/RUN with credentials that may write, or a folder on disk"
        ) from error
    finally:
        with contextlib.suppress(Exception):
            storage.file_system(str(parent)).rm(str(trial), recursive=True)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
