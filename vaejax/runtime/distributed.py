"""Several processes, one run: how they find each other, and what they tell each other."""

import contextlib
import faulthandler
import json
import os
import pathlib
import secrets
import signal
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vaejax.errors import FAILED, STOPPED, InputError, TrainingFailed, one_line

T = TypeVar("T")

EXPLICIT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
FINDING = 300  # seconds in which all processes must have started
MEETING = 24 * 3600 * 1000  # milliseconds; the watchdog looks after who does not come
# Seconds without a sign of life after which a process counts as dead, and JAX ends the others. Signs come
# every half of it: who stops right before its next one counts as dead after the other half.
HEARTBEAT = 60


def one_cpu_program_at_a_time() -> None:
    """Before JAX sees its devices: CPUs wait for one program before they begin the next.

    Several CPU devices exchange data in the order in which they come to it, and two programs at once come to
    it in any order; accelerators keep the order of programs by themselves.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def initialize() -> None:
    """Joins the processes of a run.

    Explicit environment variables come first: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. Without them JAX asks what started it: Slurm, Open MPI, the metadata
    of a TPU pod, GKE. A process that is alone on its host drives all its GPUs, as JAX_LOCAL_DEVICE_IDS may
    change.

    Raises:
      InputError: where neither tells who the others are.
      TrainingFailed: where they cannot be reached.
    """
    told = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
    arguments: dict[str, Any] = {}
    if told:
        arguments = _explicit(told)
    if _alone_on_its_host() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        arguments["local_device_ids"] = []  # all: JAX takes one GPU a process under Slurm and Open MPI
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=FINDING, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, NotImplementedError) as error:
        raise InputError(
            f"--multihost: nothing says who the other processes are ({one_line(error)}); accepted: Slurm,"
            f" Open MPI, a TPU pod, GKE, or the environment {', '.join(EXPLICIT)}"
        ) from error
    except RuntimeError as error:
        where = told.get("JAX_COORDINATOR_ADDRESS", "the first process")
        raise TrainingFailed(f"--multihost: {where} cannot be reached: {one_line(error)}") from error
    # JAX aborts while threads run, where another process is gone: to tell of all of them can crash instead.
    faulthandler.enable(all_threads=False)
    # JAX listens for it from here on, and before training does too (preemption.py) nobody would act on it.
    signal.signal(signal.SIGTERM, terminated)


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Ends one process of several at once where what is inside fails.

    Python would first say goodbye to the others, and wait for them while they wait for this one.
    """
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else FAILED
        if code in (None, 0, STOPPED) or not jax.distributed.is_initialized():
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
            print(
                f"error: process {jax.process_index()}: {one_line(error)} (no process can go on without the"
                " others); run the same command on all to go on from the last checkpoint",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def check_shared(folder: pathlib.Path) -> None:
    """Raises InputError where a folder is not the same one for all processes."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{gathered(secrets.token_hex(8))[0]}"
    if jax.process_index() == 0:
        token.touch()
    gathered("made")
    found = gathered(token.exists())
    if jax.process_index() == 0:
        token.unlink()
    if not all(found):
        without = ", ".join(str(number) for number, there in enumerate(found) if not there)
        raise InputError(
            f"--workdir={folder}: process {without} has another folder there than process 0; accepted: one"
            " that all hosts mount"
        )


def first_alone(make: Callable[[], T]) -> T:
    """What every process makes, process 0 before the others: what it leaves on a shared disk they find there.

    Raises:
      InputError: on all of them, where it fails in process 0.
    """
    if jax.process_count() == 1:
        return make()
    made, problem = None, ""
    if jax.process_index() == 0:
        try:
            made = make()
        except InputError as error:
            problem = str(error)
    if problem := gathered(problem)[0]:
        raise InputError(problem)
    return made if jax.process_index() == 0 else make()


def check_same(what: str, digest: Callable[[], Any]) -> None:
    """Raises TrainingFailed, on all processes, where one of them finds another digest than process 0.

    No mistake as such: files may have come or gone between two looks.
    """
    if jax.process_count() == 1:
        return
    said = gathered(digest())
    for number, other in enumerate(said):
        if other != said[0]:
            raise TrainingFailed(
                f"process {number} finds other {what} than process 0; they must be the same on all hosts"
            )


def in_step(items: Iterable[T], frames: Callable[[T], np.ndarray] = lambda item: item) -> Iterator[T]:
    """Goes through items that all processes must have alike, on all of them together.

    One that can't read an item would leave the others waiting for it at the next computation.

    Args:
      items: as many on every process, whose reading may raise InputError.
      frames: of an item, the array that must be the same.

    Raises:
      InputError: on all of them, where one fails, or has other frames than process 0.
    """
    if jax.process_count() == 1:
        yield from items
        return
    items = iter(items)
    while True:
        item, problem = None, ""
        try:
            item = next(items, None)
        except InputError as error:
            problem = f"process {jax.process_index()}: {error}"
        digest = None if item is None else zlib.crc32(np.ascontiguousarray(frames(item)))
        said = gathered([problem, digest])
        if problem := next((problem for problem, _ in said if problem), ""):
            raise InputError(problem)
        for number, (_, other) in enumerate(said):
            if other != said[0][1]:
                raise InputError(f"process {number} read other frames than process 0")
        if item is None:
            return
        yield item


def store() -> Any:
    """JAX's keys, values and barriers, which all processes share; None where there is one process."""
    from jax._src import distributed

    return distributed.global_state.client


def meet(where: str) -> None:
    """Waits for all processes at a place that each comes to once.

    Where they first exchange data, devices wait for late ones for a while only: Gloo, once one process has
    compiled half a minute longer than another, for ever after.
    """
    if jax.process_count() > 1:
        store().wait_at_barrier(f"vaejax/{where}", timeout_in_ms=MEETING)


def gathered(value: Any) -> list[Any]:
    """What all processes say, in their order; all must ask together.

    Args:
      value: of this process, as JSON has it.
    """
    if jax.process_count() == 1:
        return [value]
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array([len(said)]))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(said)] = said
    everything = multihost_utils.process_allgather(padded)
    return [json.loads(row[: int(n)].tobytes()) for row, n in zip(everything, lengths.ravel(), strict=True)]


def _alone_on_its_host() -> bool:
    """Whether whoever started this process started no other on this machine; True where nobody says."""
    # '2', '1(x4)', '2,1(x3)'. Open MPI first: mpirun's processes inherit what Slurm says of mpirun.
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        if tasks := os.environ.get(name):
            return all(int(part.partition("(")[0]) == 1 for part in tasks.split(","))
    return True


def _explicit(told: dict[str, str]) -> dict[str, Any]:
    missing = [name for name in EXPLICIT if name not in told]
    if missing:
        raise InputError(
            f"{', '.join(missing)} missing beside {', '.join(told)}; accepted: all three or none"
        )
    address, count, number = (told[name] for name in EXPLICIT)
    if not (count.isdecimal() and number.isdecimal() and int(number) < int(count)):
        raise InputError(
            f"JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={number}; accepted: a whole number N, and one below it"
        )
    if not address.rpartition(":")[2].isdecimal():
        raise InputError(f"JAX_COORDINATOR_ADDRESS={address}; accepted: HOST:PORT of process 0")
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}
