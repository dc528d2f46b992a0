"""Worker processes that answer one request at a time, in JSON lines."""

import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from vaejax.data import parent

T = TypeVar("T")
R = TypeVar("R")
W = TypeVar("W", bound="Worker")


class Crashed(Exception):
    """A worker process ended without an answer; the message is 'signal 9' or 'exit code 1'."""


class Worker:
    """A process that runs `serve` of a module: for each line of stdin, that writes a line to stdout.

    A multiprocessing pool would import the caller's main module (and JAX) in every worker, and a crashed
    decoder would break the whole pool. Here a crash affects only the request that caused it.

    Args:
      module: name of the module.
    """

    def __init__(self, module: str):
        self._module = module
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: Any) -> Any:
        """Sends a request, and returns the answer; starts the process if there is none.

        Raises:
          Crashed: if the process ends instead; the next request starts a new one.
        """
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            print(json.dumps(request), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        code = process.wait()
        self.close()
        raise Crashed(f"signal {-code}" if code < 0 else f"exit code {code}")

    def _start(self) -> subprocess.Popen[str]:
        parent.announce()
        paths = [os.path.abspath(path) for path in sys.path if not path or os.path.isdir(path)]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                # Stdin ends with the parent too, but a worker does not read stdin while decoding a long file.
                f"from vaejax.data import parent; parent.watch(); from {self._module} import serve; serve()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # NumPy's BLAS would start a thread per core in each worker, but decoding uses no BLAS.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches only the parent, which saves, then closes this process
        )
        return self._process

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):  # a crashed process did not read its last request
                process.stdin.close()
            process.stdout.close()
            process.wait()


def in_parallel(
    make: Callable[[], W], count: int, do: Callable[[W, T], R], items: Sequence[T]
) -> Generator[R, None, None]:
    """Yields do(worker, item) for each item, in order of completion, with `count` workers from `make`."""
    crew = [make() for _ in range(count)]
    idle: queue.SimpleQueue[W] = queue.SimpleQueue()
    for worker in crew:
        idle.put(worker)

    def work(item: T) -> R:
        worker = idle.get()
        try:
            return do(worker, item)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(count)
    try:
        for future in as_completed([pool.submit(work, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in crew:
            worker.close()
