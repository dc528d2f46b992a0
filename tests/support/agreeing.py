"""One of several processes that agree with each other; prints what came of it as a line of JSON."""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np

from vaejax.errors import InputError, TrainingFailed
from vaejax.runtime import distributed as multihost
from vaejax.runtime.preemption import Preemption


def frames(failing=None, other=None):
    for i in range(3):
        if i == failing:
            raise InputError("photo.jpg: no such file")
        yield np.full((2, 2), i + 9 * (i == other), np.uint8)


def said(work):
    """What it gives, or the mistake that it names."""
    try:
        return work()
    except (InputError, TrainingFailed) as error:
        return str(error)


def went_through(items):
    """How many items it got, and the mistake that ended it."""
    got = []
    told = said(lambda: got.extend(multihost.in_step(items)))
    return [len(got), told]


def heard_after(preemption, steps):
    """How many steps it takes until all know that process 1 was told to stop."""
    if jax.process_index() == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return next(n for n, step in enumerate(steps) if preemption.requested(step))


def main():
    multihost.one_cpu_program_at_a_time()
    multihost.initialize()
    folder = pathlib.Path(sys.argv[1])
    second = jax.process_index() == 1
    if second:
        time.sleep(2)  # compiling longer than the other
    begin = time.monotonic()
    multihost.meet("compiled")
    waited = time.monotonic() - begin
    told = {
        "waited": waited,
        "alike": went_through(frames()),
        "one fails": went_through(frames(failing=1 if second else None)),
        "one reads other frames": went_through(frames(other=2 if second else None)),
        "one has fewer": went_through(list(frames())[: 2 if second else 3]),
    }

    def made():
        """How many made it before."""
        found = len(list(folder.glob("made-*")))
        (folder / f"made-{jax.process_index()}").touch()
        return found

    def refused():
        raise InputError(f"process {jax.process_index()} has no such folder")

    told["first alone"] = said(lambda: multihost.first_alone(made))
    told["first refused"] = said(lambda: multihost.first_alone(refused))
    told["another table"] = said(lambda: multihost.check_same("photos", jax.process_index))

    with Preemption() as preemption:
        time.sleep(1)  # compiling, before the first step of a resumed run
        assert not preemption.requested(50_000)
        told["heard after a resume"] = heard_after(preemption, range(50_001, 50_200))
    with Preemption() as preemption:
        step = 1000
        preemption.requested(step)
        while preemption._next < step + 50:  # until it asks seldom
            step += 1
            preemption.requested(step)
        told["heard after a return"] = heard_after(preemption, range(500, 700))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
