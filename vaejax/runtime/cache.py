"""The cache of compiled programs and of indexes of read-only media folders; it may be deleted at any time."""

import contextlib
import functools
import inspect
import os
import pathlib
import tempfile
import time

from vaejax.files import expand_home

_of_run: pathlib.Path | None = None


def folder() -> pathlib.Path:
    """The folder of the cache: the one set by `share`, else $XDG_CACHE_HOME/vaejax or ~/.cache/vaejax.

    Without a home folder, it is a temporary folder of this process.
    """
    if _of_run:
        return _of_run
    # The XDG specification says to ignore a relative path.
    for parent in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(parent):
            return pathlib.Path(parent) / "vaejax"
    return pathlib.Path(_temporary().name)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="vaejax-")


def share(workdir: str) -> None:
    """Makes the folder `cache` inside `workdir`, which all hosts share, the cache from now on."""
    global _of_run
    _of_run = pathlib.Path(expand_home(workdir)) / "cache"


def keep_compiled() -> None:
    """Makes JAX store compiled programs, so that later commands and restarted runs load them.

    They go to JAX's own cache directory if one is set, e.g. by $JAX_COMPILATION_CACHE_DIR, and otherwise
    to `xla` in `folder()`. Small programs are stored too, unless
    $JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is set: there are hundreds, and a pod waits for its slowest
    process.
    """
    import jax  # here, because commands that only read files start faster without it

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder() / "xla"))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    _store_on_every_process()


# Parameters of the function of JAX that `_store_on_every_process` replaces.
_COMPILE_AND_WRITE = ("backend", "computation", "executable_devices", "compile_options", "host_callbacks")
_COMPILE_AND_WRITE += ("module_name", "cache_key")


@functools.cache
def _store_on_every_process() -> None:
    """Lets every process store programs that only it can load; JAX lets only process 0 store any.

    These are programs of its own devices, and on CPUs all programs. On TPUs and GPUs a program that spans
    processes has the same key everywhere, so process 0 alone stores it.
    """
    from jax._src import compilation_cache, compiler, distributed

    compile_and_write = compiler._compile_and_write_cache
    if tuple(inspect.signature(compile_and_write).parameters) != _COMPILE_AND_WRITE:
        return  # another version of JAX: process 0 alone stores programs

    @functools.wraps(compile_and_write)
    def compile_and_store(backend, computation, devices, options, host_callbacks, module, key):
        begin = time.monotonic()
        executable = compile_and_write(backend, computation, devices, options, host_callbacks, module, key)
        is_own = devices.is_fully_addressable or backend.platform == "cpu"
        if is_own and distributed.global_state.process_id != 0 and not host_callbacks:
            with contextlib.suppress(OSError):  # a program that cannot be stored is compiled again
                seconds = int(time.monotonic() - begin)
                compilation_cache.put_executable_and_time(key, module, executable, backend, seconds)
        return executable

    compiler._compile_and_write_cache = compile_and_store
