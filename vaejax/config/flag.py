"""The flag --config=FILE.py[:VARIANT] and --config.KEY=VALUE of a command line."""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from vaejax.config import schema as configuration
from vaejax.errors import InputError

SHIPPED = pathlib.Path(__file__).parent.parent / "configs"
CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, FILE.py or FILE.py:tiny.")


def parse(argv: list[str]) -> list[str]:
    """Parses flags, for `absl.app.run`; raises InputError, of one line, for what is wrong with them."""
    argv = [f"--config={_file(arg[9:])}" if arg.startswith("--config=") else arg for arg in argv]
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            dict(CONFIG.value)  # a file that is missing or broken is told of at first use only
        return rest
    except (AttributeError, KeyError) as error:
        known = set(configuration.flat(configuration.defaults()))
        keys = [arg.removeprefix("--config.").split("=")[0] for arg in argv if arg.startswith("--config.")]
        unknown = [key for key in keys if key not in known]
        # Entries of sources and buckets are a person's own: only the last suspects.
        unknown.sort(key=lambda key: key.startswith(configuration.OPEN_SECTIONS))
        raise InputError(configuration.unknown_key([*unknown, str(error)][0])) from error
    except (flags.Error, OSError, ImportError, SyntaxError, TypeError, ValueError) as error:
        told = str(error).strip()
        key, _, value = told.removeprefix("flag --config.").partition("=")
        default = configuration.default(key)
        if isinstance(error, flags.IllegalFlagValueError) and default is not None:
            told = f"{key} = {value.partition(': ')[0]}; accepted: a value like {default!r}"
        if "Traceback" in told:  # a configuration file that raises: what it says stands last
            told = f"--config: {told.splitlines()[-1].partition(': ')[2]}"
        raise InputError(" ".join(told.split())) from error


def _file(name: str) -> str:
    """The path of a configuration file, its variant after it; demo and configs/demo.py name a shipped one."""
    path, *variant = name.split(":", 1)
    shipped = SHIPPED / pathlib.Path(path).with_suffix(".py").name
    if not os.path.isfile(path) and os.path.dirname(path) in ("", "configs") and shipped.is_file():
        path = str(shipped)
    if not os.path.isfile(path):
        raise InputError(
            f"--config={name}: no such file; accepted: one like {', '.join(shipped_names())}, or a path"
        )
    return ":".join([path, *variant])


def shipped_names() -> list[str]:
    """The configurations that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.py") if path.stem != "__init__")
