"""Distributed runs: start-up, agreement and communication of several processes."""

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
START_SECONDS = 300  # limit on the time until all processes have started
BARRIER_MILLISECONDS = 24 * 3600 * 1000  # a day, so that the watchdog reports late processes first
# Seconds without a heartbeat from one process after which JAX aborts the others. Heartbeats are sent
# every HEARTBEAT / 2 seconds, so JAX notices the end of a process 30 to 60 s later.
HEARTBEAT = 60


def serialize_cpu_programs() -> None:
    """Makes CPU devices finish one program before the next; call it before JAX initializes its devices.

    CPU devices match collectives by their order of arrival, which two programs at once would mix up.
    Accelerators order programs themselves.
    """
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def initialize() -> None:
    """Connects the processes of a run.

    The variables JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID take
    precedence. Without them JAX asks the launcher: Slurm, Open MPI, the metadata of a TPU pod, or GKE. A
    process that is alone on its host uses all GPUs of the host, unless JAX_LOCAL_DEVICE_IDS chooses some.

    Raises:
      InputError: if neither the variables nor a launcher names the other processes, or a variable is wrong.
      TrainingFailed: if a process cannot be reached.
    """
    variables = {name: os.environ[name] for name in EXPLICIT if os.environ.get(name)}
    arguments: dict[str, Any] = {}
    if variables:
        arguments = _explicit(variables)
    if _is_alone_on_host() and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        arguments["local_device_ids"] = []  # []: all GPUs; by default JAX takes one under Slurm or Open MPI
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    try:
        jax.distributed.initialize(
            **arguments, initialization_timeout=START_SECONDS, heartbeat_timeout_seconds=HEARTBEAT
        )
    except (ValueError, NotImplementedError) as error:
        raise InputError(
            f"--multihost: the other processes are unknown ({one_line(error)}); accepted: Slurm,"
            f" Open MPI, a TPU pod, GKE, or the variables {', '.join(EXPLICIT)}"
        ) from error
    except RuntimeError as error:
        address = variables.get("JAX_COORDINATOR_ADDRESS", "process 0")
        raise TrainingFailed(
            f"--multihost: {address} cannot be reached, or another process did not start within"
            f" {START_SECONDS} s: {one_line(error)}"
        ) from error
    # If another process dies, JAX aborts this one. Dumping the stacks of all its running threads could crash,
    # so only that of the current thread is dumped.
    faulthandler.enable(all_threads=False)
    # JAX has installed a handler that only records SIGTERM. Until preemption.py listens, SIGTERM must end the
    # process.
    signal.signal(signal.SIGTERM, sigterm_handler)


@contextlib.contextmanager
def exiting_at_once() -> Iterator[None]:
    """Exits at once if the block fails in one of several processes.

    A normal exit would first wait for the other processes to disconnect, while they wait for this one.
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
                f"error: process {jax.process_index()}: {one_line(error)} (the others cannot continue alone);"
                " run the same command on all hosts to continue from the last checkpoint",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else FAILED)


def check_shared(folder: pathlib.Path) -> None:
    """Raises an InputError if `folder` is not the same folder on all processes."""
    if jax.process_count() == 1:
        return
    token = folder / f".shared-{all_gather(secrets.token_hex(8))[0]}"
    if jax.process_index() == 0:
        token.touch()
    all_gather("created")
    found = all_gather(token.exists())
    if jax.process_index() == 0:
        token.unlink()
    if not all(found):
        without = ", ".join(str(process) for process, exists in enumerate(found) if not exists)
        raise InputError(
            f"--workdir={folder}: on process {without} this is not the folder of process 0; accepted: a"
            " folder that all hosts mount"
        )


def main_process_first(make: Callable[[], T]) -> T:
    """Calls `make` on process 0, then on the others, which find the files that process 0 wrote.

    Raises:
      InputError: on all processes, if process 0 raises it.
    """
    if jax.process_count() == 1:
        return make()
    made: list[T] = []
    problem = ""
    if jax.process_index() == 0:
        try:
            made = [make()]
        except InputError as error:
            problem = str(error)
    if problem := all_gather(problem)[0]:
        raise InputError(problem)
    return made[0] if made else make()


def check_same(what: str, digest: Callable[[], Any]) -> None:
    """Raises TrainingFailed on all processes if the digest of one differs from that of process 0.

    This is not an InputError, because the command may succeed later: files may change between two scans.
    """
    if jax.process_count() == 1:
        return
    digests = all_gather(digest())
    for process, other in enumerate(digests):
        if other != digests[0]:
            raise TrainingFailed(
                f"process {process} finds different {what} than process 0; they must be the same on all hosts"
            )


def lockstep(items: Iterable[T], frames: Callable[[T], Any] = lambda item: item) -> Iterator[T]:
    """Yields the same items on all processes, after checking that they are the same.

    Without this check, if one process failed to read an item, the others would wait for that process in the
    next computation.

    Args:
      items: items of this process; reading one may raise an InputError.
      frames: function from an item to the array to compare.

    Raises:
      InputError: on all processes, if one process raises it or has different frames than process 0.
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
        digest = None if item is None else zlib.crc32(np.ascontiguousarray(frames(item)).data)
        answers = all_gather([problem, digest])
        if problem := next((problem for problem, _ in answers if problem), ""):
            raise InputError(problem)
        for process, (_, other) in enumerate(answers):
            if other != answers[0][1]:
                raise InputError(
                    f"process {process} read different frames than process 0; accepted: the same files on all"
                    " hosts"
                )
        if item is None:
            return
        yield item


def key_value_store() -> Any:
    """JAX's client for the key-value store and barriers of all processes; None in a run of one process."""
    from jax._src import distributed

    return distributed.global_state.client


def barrier(name: str) -> None:
    """Waits for all processes; each name may be used only once.

    The first exchange of data must not begin while another process still compiles. Accelerators wait for each
    other only for a limited time. Gloo, on CPUs, hangs forever if one process is half a minute late.
    """
    if jax.process_count() > 1:
        key_value_store().wait_at_barrier(f"vaejax/{name}", timeout_in_ms=BARRIER_MILLISECONDS)


def say(line: str) -> None:
    """Prints a line to stderr, on process 0."""
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def all_gather(value: Any) -> list[Any]:
    """Returns the values of all processes, by process index, to each of them; all processes must call it.

    Args:
      value: value of this process that JSON can represent.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.array([len(data)])))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[: int(n)].tobytes()) for row, n in zip(rows, lengths.ravel(), strict=True)]


def _is_alone_on_host() -> bool:
    """Whether the launcher started only this process on this host; True if unknown.

    With Slurm, whether it started only one process on every host.
    """
    # Values such as '2', '1(x4)' and '2,1(x3)'. Open MPI's variable comes first, because its processes
    # inherit Slurm's variable, which describes mpirun.
    for name in ("OMPI_COMM_WORLD_LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE"):
        if tasks := os.environ.get(name):
            return all(int(part.partition("(")[0]) == 1 for part in tasks.split(","))
    return True


def _explicit(variables: dict[str, str]) -> dict[str, Any]:
    """The arguments of jax.distributed.initialize that the environment variables EXPLICIT give."""
    missing = [name for name in EXPLICIT if name not in variables]
    if missing:
        raise InputError(
            f"{', '.join(variables)} set without {', '.join(missing)}; accepted: all three or none"
        )
    address, count, process = (variables[name] for name in EXPLICIT)
    if not (count.isdecimal() and process.isdecimal() and int(process) < int(count)):
        raise InputError(
            f"JAX_NUM_PROCESSES={count} JAX_PROCESS_ID={process}; accepted: a whole number N, and a number"
            " from 0 to N - 1"
        )
    if not address.rpartition(":")[2].isdecimal():
        raise InputError(f"JAX_COORDINATOR_ADDRESS={address}; accepted: HOST:PORT of process 0")
    return {"coordinator_address": address, "num_processes": int(count), "process_id": int(process)}
