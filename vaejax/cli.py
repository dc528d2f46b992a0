"""What every command line shares: help that shows an example, one line for a mistake, and the exit codes."""

import argparse
import contextlib
import errno
import os
import pathlib
import sys
from collections.abc import Callable, Iterator

from vaejax.errors import InputError, TrainingFailed

FAILED, INPUT_ERROR, INTERRUPTED = 1, 2, 130
STOPPED = 75  # EX_TEMPFAIL: after saving; run the same command to go on


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """The argument parser of `python -m module`."""
    prog = f"python -m {module}"
    return argparse.ArgumentParser(prog=prog, description=description, epilog=f"example: {prog} {example}")


def run(work: Callable[[], int | None], interrupted: str = "stopped") -> int:
    """Does the work and returns the exit code; an error for a person and Ctrl-C become one line on stderr.

    Args:
      work: returns an exit code, or None for 0.
      interrupted: what Ctrl-C leaves behind, in a few words.
    """
    try:
        return work() or 0
    except (InputError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return INPUT_ERROR if isinstance(error, InputError) else FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED


def keep_compiled() -> None:
    """Keeps compiled programs for the next command, in $JAX_COMPILATION_CACHE_DIR or the cache."""
    import jax  # which commands that only read files do without

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))


_of_run: pathlib.Path | None = None


def share_cache(workdir: str) -> None:
    """From here on the cache lies in the folder of a run, where all its hosts find what one of them made."""
    global _of_run
    _of_run = pathlib.Path(workdir).expanduser() / "cache"


def cache_folder() -> pathlib.Path:
    """Of what can be made again: $XDG_CACHE_HOME/vaejax, ~/.cache/vaejax by default, or what hosts share."""
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "vaejax"
    return _of_run or home


def made_folder(name: str, flag: str = "--out") -> pathlib.Path:
    """A folder to write to, made when missing; InputError where that cannot be."""
    folder = pathlib.Path(name).expanduser()
    with writing(name, flag):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))
    return folder


@contextlib.contextmanager
def writing(name: str, flag: str = "--out") -> Iterator[None]:
    """While a folder is written to: what the system says against it becomes an InputError of one line."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{flag}={name}: {error.strerror}; accepted: a folder that can be written"
        ) from error


@contextlib.contextmanager
def keeping(workdir: str) -> Iterator[None]:
    """While a run writes to its folder: a disk that is full or fails becomes a TrainingFailed of one line.

    Libraries tell of it in errors of their own, so it is known by the system's words for it.
    """
    try:
        yield
    except (InputError, TrainingFailed):
        raise
    except (OSError, ValueError, RuntimeError) as error:
        said, cause = "", error
        while cause is not None:
            said, cause = f"{said} {cause}", cause.__cause__ or cause.__context__
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE):
            if os.strerror(number) in said:
                raise TrainingFailed(
                    f"--workdir={workdir}: {os.strerror(number)}; checkpoints that were completed are whole,"
                    " the same command goes on from the last"
                ) from error
        raise


def at_least(smallest: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number from `smallest` on."""

    def number(text: str) -> float:
        value = kind(text)
        if not value >= smallest:
            raise argparse.ArgumentTypeError(f"{text}; accepted: a number from {smallest}")
        return value

    return number
