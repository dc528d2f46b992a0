"""The training command: python -m vaejax.main --config=demo --workdir=DIR."""

import functools
import os
import sys

from absl import app, flags, logging

from vaejax import cli
from vaejax.config.flag import CONFIG, parse, print_help_if_asked
from vaejax.errors import STOPPED, InputError

MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Join the other processes of the run; start the same command on each."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; a run that it already has is resumed.")


def main(argv: list[str]) -> int:
    """Trains, and returns the exit code: 0 when done, 75 if stopped by a signal and saved."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --workdir=DIR --config.KEY=VALUE")
    if CONFIG.value is None or not WORKDIR.value:
        raise InputError("--config and --workdir are required, e.g. --config=demo --workdir=runs/demo")
    # Here, because --help needs no JAX.
    import jax

    from vaejax.runtime import cache, distributed
    from vaejax.train.loop import fit

    several_cpus = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if MULTIHOST.value or jax.config.values["jax_num_cpu_devices"] > 1 or several_cpus:
        distributed.serialize_cpu_programs()
    if MULTIHOST.value:
        distributed.initialize()
        cache.share(WORKDIR.value)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax logs every rename and wait
    cache.keep_compiled()
    with cli.naming_disk_errors(WORKDIR.value):
        return 0 if fit(CONFIG.value, WORKDIR.value) else STOPPED


if __name__ == "__main__":
    print_help_if_asked()
    from vaejax.runtime import distributed

    with distributed.exiting_at_once():
        sys.exit(cli.run(functools.partial(app.run, main, flags_parser=parse)))
