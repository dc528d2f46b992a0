"""The flags --config=FILE.py[:VARIANT] and --config.KEY=VALUE of a command line."""

import contextlib
import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from vaejax.config.check import get, keys, unknown_key
from vaejax.config.folders import Folders
from vaejax.config.schema import OPEN_SECTIONS, Config, defaults
from vaejax.errors import InputError, one_line

SHIPPED = pathlib.Path(__file__).parent.parent / "configs"
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration: a shipped one such as demo or joint:tiny, or FILE.py[:VARIANT]."
)


class _Unchanged(flags.ArgumentParser):
    """Leaves the value of a flag as it is."""

    def parse(self, argument):
        """Returns the value unchanged: text from a flag, or a list from a configuration file."""
        return argument


config_flags.register_flag_parser_for_type(Folders, _Unchanged())


def parse(argv: list[str]) -> list[str]:
    """Parses flags, for `absl.app.run`; --help prints the flags of the command and exits with code 0.

    Raises:
      InputError: if a flag or the configuration file cannot be used; the message names the flag.
    """
    if any(arg in ("-h", "-?", "--help", "--helpshort") for arg in argv[1:]):
        print(help_text(argv[0]))
        raise SystemExit(0)
    argv = [f"--config={_file(arg[9:])}" if arg.startswith("--config=") else _whole(arg) for arg in argv]
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            dict(CONFIG.value)  # absl reads the file only at this first use
        return rest
    except (AttributeError, KeyError) as error:
        raise InputError(unknown_key(_unknown(argv) or str(error))) from error
    except (flags.Error, OSError, ImportError, SyntaxError, TypeError, ValueError) as error:
        raise InputError(_message(error)) from error


def help_text(script: str) -> str:
    """The help of a command that takes --config: docstring, flags with defaults, shipped configurations.

    Args:
      script: path of the running script, by which absl finds the script's own flags.
    """
    lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "flags:"]
    own_flags = flags.FLAGS.flags_by_module_dict().get(script, [])
    for flag in (flags.FLAGS["config"], *own_flags):
        default = {None: "required", "": "default: none"}.get(flag.default, f"default: {flag.default}")
        lines.append(f"  --{'[no]' if flag.boolean else ''}{flag.name}: {flag.help} ({default})")
    lines += [
        "  --config.KEY=VALUE: a setting, e.g. --config.optim.learning_rate=1e-4",
        "",
        f"shipped configurations: {', '.join(shipped_names())}; some have variants, e.g. joint:tiny",
        "docs/configuration.md lists every setting with its default and accepted values, and so does",
        "python -m vaejax.config.reference. train --print-config prints the settings of a run.",
    ]
    return "\n".join(lines)


def shipped_names() -> list[str]:
    """Names of the configurations that ship with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.py") if path.stem != "__init__")


def _file(name: str) -> str:
    """Returns FILE[:VARIANT] with a path as FILE; a shipped file may be named `demo` or `configs/demo.py`.

    Raises:
      InputError: if there is no such file.
    """
    path, *variant = name.split(":", 1)
    shipped = SHIPPED / pathlib.Path(path).with_suffix(".py").name
    if not os.path.isfile(path) and os.path.dirname(path) in ("", "configs") and shipped.is_file():
        path = str(shipped)
    if not os.path.isfile(path):
        names = ", ".join(shipped_names())
        raise InputError(f"--config={name}: no such file; accepted: {names}, or the path of a file")
    return ":".join([path, *variant])


def _whole(arg: str) -> str:
    """Writes the value of a whole-number setting without an exponent: --config.steps=1e5 becomes 100000."""
    flag, _, value = arg.partition("=")
    key = flag.removeprefix("--config.")
    # Unknown keys and values that are not numbers are left to absl, which reports them.
    with contextlib.suppress(AttributeError, KeyError, TypeError, ValueError):
        if key != flag and type(get(defaults(), key)) is int and not value.isdecimal():
            return f"{flag}={int(float(value))}" if float(value).is_integer() else arg
    return arg


def _unknown(argv: list[str]) -> str:
    """The first unknown key on a command line; keys in OPEN_SECTIONS come last. '' if there is none."""
    given = [arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")]
    known = set(keys(Config))
    unknown = [key for key in given if key not in known]
    return min(unknown, key=lambda key: key.startswith(tuple(OPEN_SECTIONS)), default="")


def _message(error: Exception) -> str:
    text = str(error).strip()
    if isinstance(error, flags.IllegalFlagValueError):
        key, _, value = text.removeprefix("flag --config.").partition("=")
        try:
            default = get(defaults(), key)
            text = f"{key} = {value.partition(': ')[0]}; accepted: a value like {default!r}"
        except (AttributeError, KeyError, TypeError):
            pass  # not a flag --config.KEY: absl's message is used
    if "Traceback" in text:  # from the configuration file; its last line is the message
        text = f"--config: {text.splitlines()[-1].partition(': ')[2]}"
    return one_line(ValueError(text), longest=500)
