"""The cache of compiled programs and of indexes of read-only media; it may be deleted at any time."""

import os
import pathlib

_of_run: pathlib.Path | None = None


def folder() -> pathlib.Path:
    """The cache: $XDG_CACHE_HOME/vaejax, by default ~/.cache/vaejax, or the one that `share` chose."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vaejax"
    return _of_run or home


def share(workdir: str) -> None:
    """Uses the folder `cache` of a run, which all its hosts share, as the cache from now on."""
    global _of_run
    _of_run = pathlib.Path(workdir).expanduser() / "cache"


def keep_compiled() -> None:
    """Makes JAX store compiled programs for later commands, in $JAX_COMPILATION_CACHE_DIR or the cache."""
    import jax  # here, because commands that only read files start faster without it

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder() / "xla"))
