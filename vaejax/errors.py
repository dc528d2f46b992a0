"""The one error that is a person's to mend."""


class InputError(ValueError):
    """A configuration or an input cannot be used.

    The message is one line that names the key or file, its value and what is accepted. Commands print it
    without a traceback and exit with code 2.
    """
