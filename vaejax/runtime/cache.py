"""The cache of compiled programs and of indexes of read-only media; it may be deleted at any time."""

import os
import pathlib

_of_run: pathlib.Path | None = None


def folder() -> pathlib.Path:
    """$XDG_CACHE_HOME/vaejax, by default ~/.cache/vaejax; the run's folder after `share`."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vaejax"
    return _of_run or home


def share(workdir: str) -> None:
    """Moves the cache into the folder of a run, which all its hosts share."""
    global _of_run
    _of_run = pathlib.Path(workdir).expanduser() / "cache"


def keep_compiled() -> None:
    """Keeps compiled programs for the next command, in $JAX_COMPILATION_CACHE_DIR or the cache."""
    import jax  # here, because commands that only read files start faster without it

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder() / "xla"))
