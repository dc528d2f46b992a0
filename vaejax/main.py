"""The training command: python -m vaejax.main --config=demo --workdir=DIR."""

import functools
import json
import os
import sys
from typing import Any, NoReturn

from absl import app, flags, logging

from vaejax import cli
from vaejax.config import check
from vaejax.config.flag import CONFIG, parse
from vaejax.data import parent
from vaejax.errors import STOPPED, InputError

MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Train on several hosts together; start the same command on each of them."
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, on disk or gs://BUCKET/RUN; a run already stored there is resumed."
)
PRINT_CONFIG = flags.DEFINE_bool(
    "print-config", False, "Check the configuration, print it as JSON, and do not train."
)


def main(argv: list[str]) -> NoReturn:
    """Trains and exits: with code 0 when done, 75 if a signal stopped the run, or an error code of `cli.run`.

    The same command resumes a stopped run.
    """
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --workdir=DIR --config.KEY=VALUE")
    if CONFIG.value is not None and PRINT_CONFIG.value:
        print(json.dumps(check(CONFIG.value).to_dict(), indent=2))
        sys.exit(0)
    if CONFIG.value is None or not WORKDIR.value:
        raise InputError("--config and --workdir are required, e.g. --config=demo --workdir=runs/demo")
    from vaejax.runtime import distributed  # imported here, so that --help does not import JAX

    with distributed.exiting_at_once():
        sys.exit(cli.run(functools.partial(_train, CONFIG.value, WORKDIR.value)))


def _train(config: Any, workdir: str) -> int:
    import jax

    from vaejax.runtime import cache, distributed, storage
    from vaejax.train.loop import fit

    several_cpus = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if MULTIHOST.value or jax.config.values["jax_num_cpu_devices"] > 1 or several_cpus:
        distributed.serialize_cpu_programs()
    if MULTIHOST.value:
        distributed.initialize()
        if not storage.is_url(workdir):  # a bucket would make the cache slow
            cache.share(workdir)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax logs every rename and wait
    cache.keep_compiled()
    with cli.naming_disk_errors(workdir):
        return 0 if fit(config, workdir) else STOPPED


if __name__ == "__mp_main__":  # in a data worker: multiprocessing imports this file before Grain
    parent.watch()
if __name__ == "__main__":
    sys.exit(cli.run(functools.partial(app.run, main, flags_parser=parse)))
