"""Command lines: the `vaejax` script, argument parsers, one-line errors, output folders."""

import argparse
import contextlib
import errno
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from vaejax.errors import (
    DISK_ERRORS,
    FAILED,
    INPUT_ERROR,
    INTERRUPTED,
    STORE_ERRORS,
    InputError,
    TrainingFailed,
    one_line,
    with_causes,
)

# Command of the `vaejax` script -> module that runs it, arguments to put before the user's, purpose.
COMMANDS = {
    "train": ("vaejax.main", [], "train an autoencoder, or continue its run"),
    "watch": ("vaejax.watch", [], "keep a page with the curves and pictures of runs up to date"),
    "index": ("vaejax.data.index", [], "scan a folder of photos and clips, as training does itself"),
    "prepare": ("vaejax.data.prepare", [], "pack media into shards"),
    "evaluate": ("vaejax.evaluate", [], "score a trained autoencoder and other codecs"),
    "probe": ("vaejax.probe", [], "train a small diffusion model on latents and score its samples"),
    "encode": ("vaejax.codec", ["encode"], "convert photos and clips to latents"),
    "decode": ("vaejax.codec", ["decode"], "convert latents to photos and clips"),
    "reconstruct": ("vaejax.codec", ["reconstruct"], "encode and decode, to show what is lost"),
    "export": ("vaejax.export", [], "write the weights of a run for other programs"),
    "plan": ("vaejax.plan", [], "predict the memory and time of a run on TPUs, from any machine"),
}


def main() -> int:
    """Runs `vaejax COMMAND ...` by replacing this process with `python -m MODULE ...`.

    Without a known command, prints the usage or an error and returns the exit code.
    """
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        if command not in ("", "-h", "--help"):
            print(f"error: {command}: not a command; accepted: {', '.join(COMMANDS)}", file=sys.stderr)
            return INPUT_ERROR
        print("usage: vaejax COMMAND ...\n")
        print("\n".join(f"  {name:12} {purpose}" for name, (_, _, purpose) in COMMANDS.items()))
        print("\nvaejax COMMAND --help describes a command.")
        return 0
    module, arguments, _ = COMMANDS[command]
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments, *sys.argv[2:]])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Prints one line, without the usage in front of it, and exits."""
        print(f"error: {message}; {self.prog} --help lists what is accepted", file=sys.stderr)
        sys.exit(INPUT_ERROR)


def parser(module: str, description: str, example: str) -> argparse.ArgumentParser:
    """Returns a parser for `python -m module`; `example` holds the arguments of an example call."""
    prog = f"python -m {module}"
    return _Parser(prog=prog, description=description, epilog=f"example: {prog} {example}")


def run(work: Callable[[], int | None], interrupted: str = "stopped") -> int:
    """Runs a command and returns its exit code; expected errors and Ctrl-C become one line on stderr.

    Args:
      work: the command; returns an exit code, or None for 0.
      interrupted: message after Ctrl-C, e.g. about the files that are kept.
    """
    _in_utf8_mode()
    try:
        return work() or 0
    except (InputError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return INPUT_ERROR if isinstance(error, InputError) else FAILED
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return INTERRUPTED


def _in_utf8_mode() -> None:
    """Restarts a command in Python's UTF-8 mode if the locale encodes file names differently.

    Otherwise libraries that accept only UTF-8, such as PyArrow and TensorStore, could not open files with
    non-ASCII names. In the C locale, Python enables this mode itself, unless its environment variables forbid
    that.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    is_command = module is not None and module.name.startswith("vaejax.")
    if is_command and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # worker processes inherit it
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def made_folder(name: str, flag: str = "--out") -> pathlib.Path:
    """Creates an output folder if it is missing.

    Args:
      name: path of the folder.
      flag: flag that named the folder, for error messages.

    Raises:
      InputError: if the folder cannot be created or is not writable.
    """
    from vaejax.files import expand_home  # here, because --help needs no NumPy

    folder = pathlib.Path(expand_home(name))
    with writing(name, flag):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise OSError(number, os.strerror(number))
    return folder


@contextlib.contextmanager
def writing(name: str, flag: str = "--out") -> Iterator[None]:
    """A context that turns an OSError, raised while output is written, into an InputError.

    Args:
      name: value of the flag, for the error message.
      flag: flag that names the output.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)  # stores give no numbers
        accepted = "" if "accepted:" in reason else "; accepted: a writable folder"
        raise InputError(f"{flag}={name}: {reason}{accepted}") from error


@contextlib.contextmanager
def naming_disk_errors(workdir: str) -> Iterator[None]:
    """A context that turns errors of a full, read-only or failing disk or bucket into a TrainingFailed.

    The message names `workdir`, the folder of the run.
    """
    try:
        yield
    except (InputError, TrainingFailed):
        raise
    except Exception as error:  # gcsfs and TensorStore raise many types
        text = with_causes(error)
        reasons = [os.strerror(number) for number in DISK_ERRORS if os.strerror(number) in text]
        if "://" in workdir and _of_store(error, text):
            reasons.append(one_line(error))
        if not reasons:
            raise
        raise TrainingFailed(
            f"--workdir={workdir}: {reasons[0]}; correct this, then run the same command to continue from the"
            " last complete checkpoint"
        ) from error


def _of_store(error: BaseException | None, text: str) -> bool:
    """Whether an error, or one of those that led to it, is of a bucket; `text` has all their messages."""
    if any(status in text for status in STORE_ERRORS):
        return True
    while error is not None:
        if type(error).__module__.split(".")[0] in ("aiohttp", "gcsfs", "google", "requests"):
            return True
        error = error.__cause__ or error.__context__
    return False


def at_least(smallest: float, kind: type = int) -> Callable[[str], float]:
    """Returns an argparse type that accepts numbers of type `kind` that are at least `smallest`."""

    def number(text: str) -> float:
        with contextlib.suppress(ValueError):  # raised if the text is not a number
            if (value := kind(text)) >= smallest:
                return value
        name = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text}; accepted: a {name} of at least {smallest}")

    return number
