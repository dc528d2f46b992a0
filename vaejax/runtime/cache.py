"""The cache: compiled programs, and indexes of read-only media; everything in it can be made again."""

import os
import pathlib

_of_run: pathlib.Path | None = None


def folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/vaejax, by default ~/.cache/vaejax; the run's folder after `share`."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vaejax"
    return _of_run or home


def share(workdir: str) -> None:
    """Moves the cache to the folder of a run, where all its hosts share it."""
    global _of_run
    _of_run = pathlib.Path(workdir).expanduser() / "cache"


def keep_compiled() -> None:
    """Keeps compiled programs for the next command, in $JAX_COMPILATION_CACHE_DIR or the cache."""
    import jax  # imported here because commands that only read files do without it

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(folder() / "xla"))
