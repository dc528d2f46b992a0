"""What every command line shares: help that shows an example, one line for a mistake, and the exit codes."""

import argparse
import sys
from collections.abc import Callable

from vaejax.errors import InputError, TrainingFailed

FAILED, INPUT_ERROR, INTERRUPTED = 1, 2, 130


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


def at_least(smallest: float, kind: type = int) -> Callable[[str], float]:
    """An argparse type: a number from `smallest` on."""

    def number(text: str) -> float:
        value = kind(text)
        if not value >= smallest:
            raise argparse.ArgumentTypeError(f"{text}; accepted: a number from {smallest}")
        return value

    return number
