"""Plans a run: python -m vaejax.plan --config=configs/joint.py:large --topology=v5e:16x16."""

import concurrent.futures
import functools
import json
import os
import pathlib
import sys

import jax
from absl import app, flags

from vaejax import cli
from vaejax.config import Config, builders, check
from vaejax.config.flag import CONFIG, parse
from vaejax.errors import InputError
from vaejax.plan import suggestion, table, topology
from vaejax.plan.cost import Costs
from vaejax.plan.prediction import Prediction
from vaejax.runtime import host as machine
from vaejax.runtime import mesh as sharding
from vaejax.train.programs import Programs

TOPOLOGY = flags.DEFINE_string("topology", None, f"Devices that need not be there: {topology.ACCEPTED}.")
SAMPLES = flags.DEFINE_integer("samples", 0, "Samples to train on; by default those of config.steps updates.")
PRICE = flags.DEFINE_float("price", 0.0, "Of a chip for an hour.")
JSON = flags.DEFINE_string("json", "", "File for the same numbers as JSON.")
JOB_BYTES = 4e9  # of memory that a program's compilation takes, about
JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Programs compiled at once, each on a core and in some 4 GB; 0: as many as find room.",
    0,
)
SUGGEST = flags.DEFINE_bool("suggest", False, "Search batch sizes and mesh for the most samples a second.")


def main(argv: list[str]) -> int:
    """Prints the plan; returns 0 where everything fits, else 1."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --topology=NAME --config.KEY=VALUE")
    if CONFIG.value is None or not TOPOLOGY.value:
        raise InputError("--config and --topology are needed: --config=configs/joint.py --topology=v5e:16x16")
    where, config = topology.of(TOPOLOGY.value), check(CONFIG.value)
    costs = Costs(where, functools.partial(print, file=sys.stderr))
    planned = functools.partial(plan, where=where, costs=costs, jobs=JOBS.value or _jobs())
    if SUGGEST.value:
        config = suggestion.best(config, where, planned)
    prediction = planned(config)
    print(table.text(config, where, prediction, SAMPLES.value, PRICE.value))
    if JSON.value:
        found = table.numbers(config, where, prediction, SAMPLES.value, PRICE.value)
        with cli.writing(JSON.value, "--json"):
            pathlib.Path(JSON.value).write_text(json.dumps(found, indent=2) + "\n")
    return 0 if prediction.all_fit else 1


def plan(config: Config, where: topology.Topology, costs: Costs, jobs: int = 1) -> Prediction:
    """Compiles every program of a configuration's last phase for a topology, the longest first.

    Args:
      config: of the keys in config.py.
      where: the topology.
      costs: what is known, of it.
      jobs: programs compiled at once.

    Raises:
      InputError: for a configuration that does not suit it.
    """
    mesh = sharding.make_mesh(config.mesh, where.devices)
    buckets = builders.buckets(config, sharding.batch_parts(mesh), sharding.height_parts(mesh))
    programs = Programs.of(config, buckets, mesh)
    phase = programs.phase(config.steps - 1)
    everything = json.loads(json.dumps(config.to_dict()))
    made_from = {key: everything[key] for key in ("model", "loss", "optim", "ema", "mesh", "steps")}
    made_from["buckets"] = sorted(b.name for b in buckets)  # they say which discriminators there are
    pool, found = concurrent.futures.ThreadPoolExecutor(jobs), {}
    try:
        for number, bucket in enumerate(sorted(buckets, key=lambda b: -b.pixels * b.batch), 1):
            found[bucket.name] = pool.submit(
                costs.of,
                f"{bucket.name}, batch {bucket.batch} ({number} of {len(buckets)})",
                made_from | {"bucket": [bucket.name, bucket.batch, bucket.weight]},
                functools.partial(programs.gradients, phase, bucket),
                functools.partial(programs.model_flops, phase, bucket),
            )
        found["update"] = pool.submit(
            costs.of, "the update", made_from, lambda: programs.apply(phase), lambda: 0
        )
        found = {name: cost.result() for name, cost in found.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    networks = [programs.state.params, [one.params for one in programs.state.discriminators.values()]]
    state = sharding.device_bytes([programs.state, programs.accumulated(phase)])
    state += sum(leaf.nbytes for leaf in jax.tree.leaves(programs.lpips_params))
    parameters = sharding.device_bytes(networks)
    return Prediction(buckets, found, parameters, state, mesh.size, where.chip, where.shape)


def _jobs() -> int:
    """As many as there are cores, and memory for."""
    return max(1, min(machine.cores(), int(machine.memory() / JOB_BYTES)))


if __name__ == "__main__":
    interrupted = "stopped; what was compiled is kept"
    code = cli.run(functools.partial(app.run, main, flags_parser=parse), interrupted)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a compilation cannot be stopped, and Python would wait for it
