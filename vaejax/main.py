"""Trains a VAE: python -m vaejax.main --config=configs/joint.py --workdir=DIR."""

import functools
import os
import sys

import jax
from absl import app, flags, logging

from vaejax import cli as command
from vaejax.config.flag import CONFIG, parse
from vaejax.errors import InputError
from vaejax.runtime import distributed as multihost
from vaejax.train import loop as train

MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "One process of several, on each of which the same command runs (multihost.py)."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder again resumes it.")


def main(argv: list[str]) -> int:
    """Runs `train.fit`; returns the exit code: 0 done, 75 stopped by a signal after saving."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --workdir=DIR --config.KEY=VALUE")
    if CONFIG.value is None or not WORKDIR.value:
        raise InputError("--config and --workdir are needed: --config=configs/demo.py --workdir=DIR")
    several_cpus = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if MULTIHOST.value or jax.config.jax_num_cpu_devices > 1 or several_cpus:
        multihost.one_cpu_program_at_a_time()
    if MULTIHOST.value:
        multihost.initialize()
        command.share_cache(WORKDIR.value)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax tells of every rename and every wait
    command.keep_compiled()
    with command.keeping(WORKDIR.value):
        return 0 if train.fit(CONFIG.value, WORKDIR.value) else command.STOPPED


if __name__ == "__main__":
    with multihost.leaving_at_once():
        sys.exit(command.run(functools.partial(app.run, main, flags_parser=parse)))
