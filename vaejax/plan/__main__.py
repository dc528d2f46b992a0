"""The command python -m vaejax.plan --config=joint:large --topology=v5e:16x16, which plans a run."""

import functools
import os
import sys

from absl import app, flags

from vaejax import cli
from vaejax.config.flag import CONFIG, parse
from vaejax.errors import InputError
from vaejax.plan.topology import ACCEPTED

TOPOLOGY = flags.DEFINE_string("topology", None, f"Devices to plan for, attached or not: {ACCEPTED}.")
SAMPLES = flags.DEFINE_integer("samples", 0, "Samples to train on; 0: those of config.steps updates.")
PRICE = flags.DEFINE_float("price", 0.0, "Price of one chip-hour; if set, the cost of the run is printed.")
JSON = flags.DEFINE_string("json", "", "File to write the numbers of the plan to, as JSON.")
JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Programs compiled at once; each takes a core and about 4 GB. 0: as many as cores and memory allow.",
    0,
)
SUGGEST = flags.DEFINE_bool(
    "suggest", False, "Search for the batch sizes and mesh with the most samples per second."
)


def main(argv: list[str]) -> int:
    """Prints the plan; returns 0 if every program fits, else 1."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --topology=NAME --config.KEY=VALUE")
    if CONFIG.value is None or not TOPOLOGY.value:
        raise InputError(
            "--config and --topology are required; accepted: e.g. --config=joint --topology=v5e:16x16"
        )
    from vaejax.plan import command  # here, because --help needs no JAX

    return command.run(
        CONFIG.value,
        topology=TOPOLOGY.value,
        samples=SAMPLES.value,
        price=PRICE.value,
        json_file=JSON.value,
        jobs=JOBS.value,
        suggest=SUGGEST.value,
    )


if __name__ == "__main__":
    interrupted = "stopped; the programs compiled so far are cached"
    code = cli.run(functools.partial(app.run, main, flags_parser=parse), interrupted)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python would wait for compilations, which cannot be stopped
