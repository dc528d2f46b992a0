"""Real processes of one run, connected on loopback."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Sequence

import psutil

ROOT = pathlib.Path(__file__).parents[2]


@dataclasses.dataclass
class Process:
    """A started process and the file of its output."""

    popen: subprocess.Popen
    log: pathlib.Path


def start(
    count: int,
    devices: int,
    arguments: Sequence[str],
    logs: pathlib.Path,
    module: str = "vaejax.main",
    multihost: bool = False,
    compiled: pathlib.Path | None = None,
) -> list[Process]:
    """Starts processes of `python -m MODULE ARGUMENTS`, with --multihost if there are several.

    Args:
      count: number of processes.
      devices: number of CPU devices per process.
      arguments: arguments of the command.
      logs: folder for the output of the processes.
      module: the module to run.
      multihost: pass --multihost to a single process too; its devices then exchange data by Gloo.
      compiled: cache of compiled programs for these processes alone; default: that of all tests, for programs
        that take long.
    """
    multihost = multihost or count > 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = dict(
        os.environ, JAX_NUM_CPU_DEVICES=str(devices), PYTHONPATH=str(ROOT), PYTHONUNBUFFERED="1"
    )
    environment["JAX_PLATFORMS"] = "cpu"
    # Threads per process. The default is the number of cores or devices, which changes the last bits of sums.
    environment["NPROC"] = "4"
    environment["JAX_COMPILATION_CACHE_DIR"] = str(compiled or ROOT / "build" / "xla")
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0" if compiled else "0.3"
    logs.mkdir(parents=True, exist_ok=True)
    processes = []
    for number in range(count):
        mine = dict(environment)
        if multihost:
            mine |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
            mine["JAX_PROCESS_ID"] = str(number)
        log = logs / f"{number}.log"
        command = [sys.executable, "-m", module, *arguments, *(["--multihost"] if multihost else [])]
        with open(log, "a") as file:
            popen = subprocess.Popen(command, env=mine, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        processes.append(Process(popen, log))
    return processes


def finish(processes: Sequence[Process], seconds: float = 3600) -> list[int]:
    """Waits for all processes and returns their exit codes; the timeout allows for a slow machine."""
    try:
        return [process.popen.wait(seconds) for process in processes]
    finally:
        for process in processes:
            process.popen.kill()


def beam_workers(pid: int) -> list[psutil.Process]:
    """The worker processes of a command that runs on Beam's DirectRunner."""
    children = psutil.Process(pid).children(recursive=True)
    return [
        child
        for child in children
        if child.name() != "sh" and any("sdk_worker" in word for word in child.cmdline())
    ]
