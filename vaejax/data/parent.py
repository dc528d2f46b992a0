"""Worker processes that end with their parent, at whatever moment it dies.

The parent announces its process ID before it starts workers. If a worker asked the system for its
parent instead, it would not notice a parent that died earlier, during the worker's imports.
"""

import functools
import os
import threading
import time

_ANNOUNCED = "VAEJAX_PARENT"  # environment variable that workers inherit
_dead = threading.Event()


def announce() -> None:
    """Makes this process the parent that all workers started later watch."""
    os.environ[_ANNOUNCED] = str(os.getpid())


@functools.cache  # one thread, however often it is called
def watch() -> None:
    """Starts a thread that ends this process within two seconds of the parent's death.

    Call it before slow imports. Without an announced parent nothing is watched.
    """
    if announced := os.environ.get(_ANNOUNCED):
        threading.Thread(target=_watch, args=(int(announced),), daemon=True).start()


def end_if_dead() -> None:
    """Ends this process if its parent died; call it where the process holds nothing to clean up."""
    if _dead.is_set():
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    _dead.set()
    # The main thread may be creating a block of shared memory. It has one more second to register the
    # block with multiprocessing's resource tracker, which then removes it.
    time.sleep(1)
    os._exit(1)
