"""Each of several processes runs this to test how they agree; prints the results as a line of JSON."""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np

from vaejax.errors import InputError, TrainingFailed
from vaejax.rundir.checkpoint import Checkpoints
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.lock import locked
from vaejax.runtime import distributed
from vaejax.runtime.preemption import Preemption


def frames(failing=None, other=None):
    for i in range(3):
        if i == failing:
            raise InputError("photo.jpg: no such file")
        yield np.full((2, 2), i + 9 * (i == other), np.uint8)


def result(work):
    """The result of a call, or its error message."""
    try:
        return work()
    except (InputError, TrainingFailed) as error:
        return str(error)


def iterated(items):
    """The number of items before the end or an error, and the error message."""
    got = []
    error = result(lambda: got.extend(distributed.lockstep(items)))
    return [len(got), error]


def steps_to_agree(preemption, steps):
    """The number of steps until all processes know that process 1 received a signal."""
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return next(n for n, step in enumerate(steps) if preemption.requested(step))


def damaged_on_one(folder):
    """The steps tried if process 1 alone cannot read its part of step 2, and whether the arrays are right."""
    mesh = jax.sharding.Mesh(jax.devices(), "x")
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    values = np.random.default_rng(0).normal(size=(len(jax.devices()), 2000)).astype(np.float32)
    items = {"state": {"w": jax.make_array_from_callback(values.shape, split, lambda part: values[part])}}
    with Checkpoints(folder, keep=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, items, {}, {}, {})
    if jax.process_index() == 0:
        for path in (folder / "checkpoints" / "2" / "state" / "ocdbt.process_1" / "d").iterdir():
            path.write_bytes(bytes(path.stat().st_size))
    distributed.barrier("damaged")
    steps, readable = [], []
    with Checkpoints(folder, keep=2) as checkpoints:

        def use(step):
            steps.append(step)
            return checkpoints.restore(step, items)[0]["state"]["w"]

        restored = checkpoints.newest_whole(use)
    for shard in restored.addressable_shards:
        readable.append(bool((np.asarray(shard.data) == values[shard.index]).all()))
    return [steps, readable, sorted(path.name for path in (folder / "damaged").iterdir())]


def main():
    distributed.serialize_cpu_programs()
    distributed.initialize()
    folder = pathlib.Path(sys.argv[1])
    second = jax.process_index() == 1
    if second:
        time.sleep(2)  # as if this process compiled longer
    begin = time.monotonic()
    distributed.barrier("compiled")
    waited = time.monotonic() - begin
    results = {
        "waited": waited,
        "identical items": iterated(frames()),
        "one fails": iterated(frames(failing=1 if second else None)),
        "other frames": iterated(frames(other=2 if second else None)),
        "fewer items": iterated(list(frames())[: 2 if second else 3]),
    }

    def made():
        """The number of earlier calls."""
        found = len(list(folder.glob("made-*")))
        (folder / f"made-{jax.process_index()}").touch()
        return found

    def refused():
        raise InputError(f"process {jax.process_index()} has no such folder")

    results["process 0 first"] = result(lambda: distributed.main_process_first(made))
    results["process 0 refused"] = result(lambda: distributed.main_process_first(refused))
    results["damaged on one"] = result(lambda: damaged_on_one(folder / "run"))
    results["folder in use"] = result(lambda: locked(RunFolder(folder)).__enter__())
    results["other digest"] = result(lambda: distributed.check_same("photos", jax.process_index))

    with Preemption() as preemption:
        preemption.listen()
        time.sleep(1)  # as if it compiled before the first step of a resumed run
        assert not preemption.requested(50_000)
        results["steps to agree after a resume"] = steps_to_agree(preemption, range(50_001, 50_200))
    with Preemption() as preemption:
        preemption.listen()
        step = 1000
        preemption.requested(step)
        while preemption._next < step + 50:  # until the processes exchange signals rarely
            step += 1
            preemption.requested(step)
        results["steps to agree after a rollback"] = steps_to_agree(preemption, range(500, 700))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
