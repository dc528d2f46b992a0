"""The cache of compiled programs and of indexes of read-only media folders; it may be deleted at any time."""

import functools
import os
import pathlib
import tempfile

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
    """Makes JAX store compiled programs for later commands.

    They go to JAX's own cache directory if one is set, e.g. by $JAX_COMPILATION_CACHE_DIR, and otherwise
    to `xla` in `folder()`.
    """
    import jax  # here, because commands that only read files start faster without it

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder() / "xla"))
