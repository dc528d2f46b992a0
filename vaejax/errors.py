"""The errors that a person reads as one line, and the one by which work that is to stop ends."""


class InputError(ValueError):
    """A configuration or an input cannot be used.

    The message is one line that names the key or file, its value and what is accepted. Commands print it
    without a traceback and exit with code 2.
    """


def one_line(error: BaseException, longest: int = 200) -> str:
    """What another's error says, as one line that is not empty."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


class Stopped(Exception):
    """Work was given up because somebody asked for that."""


class TrainingFailed(RuntimeError):
    """A run cannot go on. The message is one line; commands print it without a traceback and exit with 1."""
