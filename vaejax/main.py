"""Trains a VAE: python -m vaejax.main --config=configs/joint.py --workdir=DIR."""

import functools
import os
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from vaejax import command, preemption, train
from vaejax import config as configuration
from vaejax.errors import InputError

CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, FILE.py or FILE.py:tiny.")
MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "One process of several, found by jax.distributed.initialize."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder again resumes it.")


def main(argv: list[str]) -> int:
    """Runs `train.fit`; returns the exit code: 0 done, 75 stopped by a signal after saving."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --workdir=DIR --config.KEY=VALUE")
    if CONFIG.value is None or not WORKDIR.value:
        raise InputError("--config and --workdir are needed: --config=configs/demo.py --workdir=DIR")
    if MULTIHOST.value:
        jax.distributed.initialize()
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax tells of every rename and every wait
    command.keep_compiled()
    return 0 if train.fit(CONFIG.value, WORKDIR.value) else preemption.EXIT_CODE


def _parse(argv: list[str]) -> list[str]:
    """Parses flags; what is wrong with them is told in one line."""
    for name in (arg.removeprefix("--config=") for arg in argv if arg.startswith("--config=")):
        if not os.path.isfile(name.partition(":")[0]):
            raise InputError(f"--config={name}: no such file; accepted: one like configs/joint.py:tiny")
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


if __name__ == "__main__":
    sys.exit(command.run(functools.partial(app.run, main, flags_parser=_parse)))
