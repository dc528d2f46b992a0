"""Errors that commands print as one line, and exit codes."""

import errno

FAILED, INPUT_ERROR, INTERRUPTED = 1, 2, 130
STOPPED = 75  # EX_TEMPFAIL: a signal stopped the run; the same command continues it
# Errors of a full, read-only or failing disk, not of the files on it.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.ESTALE)
# In messages of TensorStore, if a bucket does not answer or refuses.
STORE_ERRORS = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
)


class InputError(ValueError):
    """A configuration or an input cannot be used.

    The message is one line that names the key or file, its value and what is accepted. Commands print it
    without a traceback and exit with code 2.
    """


class TrainingFailed(RuntimeError):
    """A run cannot continue.

    The message is one line; commands print it without a traceback and exit with code 1.
    """


class Stopped(Exception):
    """Raised to end work early after a request to stop, such as SIGTERM or Ctrl-C."""


def one_line(error: BaseException, longest: int = 200) -> str:
    """The message of an error as one non-empty line of at most `longest` characters."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


def with_causes(error: BaseException) -> str:
    """The messages of an error and of all errors that led to it, as one text.

    Libraries wrap an OSError in exceptions of their own; this text still has the operating system's message.
    """
    texts = []
    cause: BaseException | None = error
    while cause is not None:
        texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return " ".join(texts)
