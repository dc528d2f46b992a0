"""Plans a run: python -m vaejax.plan --config=joint:large --topology=v5e:16x16."""

import concurrent.futures
import functools
import json
import os
import pathlib
import shlex
import sys

import jax
from absl import app, flags

from vaejax import cli
from vaejax.config import Config, check
from vaejax.config.flag import CONFIG, parse
from vaejax.data.bucket import buckets_of
from vaejax.errors import InputError
from vaejax.plan import suggestion, table
from vaejax.plan.cost import Costs
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import ACCEPTED, Topology
from vaejax.runtime import host
from vaejax.runtime import mesh as sharding
from vaejax.train.programs import Programs

TOPOLOGY = flags.DEFINE_string("topology", None, f"Devices to plan for, which may be absent: {ACCEPTED}.")
SAMPLES = flags.DEFINE_integer("samples", 0, "Samples to train on; default: those of config.steps updates.")
PRICE = flags.DEFINE_float("price", 0.0, "Price of one chip for an hour.")
JSON = flags.DEFINE_string("json", "", "File to write the numbers of the plan to, as JSON.")
JOB_BYTES = 4e9  # approximate memory that compiling one program takes
JOBS = flags.DEFINE_integer(
    "jobs",
    0,
    "Programs compiled at a time; each takes a core and about 4 GB. 0: as many as this machine can hold.",
    0,
)
SUGGEST = flags.DEFINE_bool("suggest", False, "Search batch sizes and mesh for the most samples per second.")


def main(argv: list[str]) -> int:
    """Prints the plan; returns 0 if every program fits, else 1."""
    if len(argv) > 1:
        raise InputError(f"{argv[1]}: not a flag; accepted: --config=FILE --topology=NAME --config.KEY=VALUE")
    if CONFIG.value is None or not TOPOLOGY.value:
        raise InputError(
            "--config and --topology are required; accepted: e.g. --config=joint --topology=v5e:16x16"
        )
    topology, config = Topology.of(TOPOLOGY.value), check(CONFIG.value)
    costs = Costs(topology, functools.partial(print, file=sys.stderr))
    compiled = functools.partial(plan, topology=topology, costs=costs, jobs=JOBS.value or _jobs())
    arguments = [shlex.quote(a) for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    if SUGGEST.value:
        config = suggestion.best(config, topology, compiled)
        arguments += suggestion.flags(config)
    prediction = compiled(config)
    print(table.text(config, topology, prediction, SAMPLES.value, PRICE.value))
    print("\n" + table.last_words(topology, prediction, arguments, suggested=SUGGEST.value))
    if JSON.value:
        numbers = table.numbers(config, topology, prediction, SAMPLES.value, PRICE.value)
        with cli.writing(JSON.value, "--json"):
            pathlib.Path(JSON.value).write_text(json.dumps(numbers, indent=2) + "\n")
    return 0 if prediction.all_fit else 1


def plan(config: Config, topology: Topology, costs: Costs, jobs: int = 1) -> Prediction:
    """Compiles all programs of a configuration's last phase for a topology, the largest first.

    Args:
      config: the configuration to plan.
      topology: the topology to compile for.
      costs: the costs of programs, cached for this topology.
      jobs: number of programs compiled at a time.

    Raises:
      InputError: if the configuration does not suit the topology.
    """
    mesh = sharding.make_mesh(config.mesh, topology.devices)
    buckets = buckets_of(config, sharding.batch_parts(mesh), sharding.height_parts(mesh))
    programs = Programs.of(config, buckets, mesh)
    phase = programs.phase(config.steps - 1)
    everything = json.loads(json.dumps(config.to_dict()))
    made_from = {key: everything[key] for key in ("model", "loss", "optim", "ema", "mesh", "steps")}
    made_from["buckets"] = sorted(b.name for b in buckets)  # they determine the discriminators
    pool, submitted = concurrent.futures.ThreadPoolExecutor(jobs), {}
    try:
        for number, bucket in enumerate(sorted(buckets, key=lambda b: -b.pixels * b.batch), 1):
            submitted[bucket.name] = pool.submit(
                costs.of,
                f"{bucket.name}, batch {bucket.batch} ({number} of {len(buckets)})",
                made_from | {"bucket": [bucket.name, bucket.batch, bucket.weight]},
                functools.partial(programs.gradients, phase, bucket),
                functools.partial(programs.model_flops, phase, bucket),
            )
        submitted["update"] = pool.submit(
            costs.of, "the update", made_from, lambda: programs.apply(phase), lambda: 0
        )
        costs_by_name = {name: cost.result() for name, cost in submitted.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    networks = [programs.state.params, [one.params for one in programs.state.discriminators.values()]]
    state = sharding.device_bytes([programs.state, programs.accumulated(phase)])
    state += sum(leaf.nbytes for leaf in jax.tree.leaves(programs.lpips_params))
    parameters = sharding.device_bytes(networks)
    return Prediction(buckets, costs_by_name, parameters, state, mesh.size, topology.chip, topology.shape)


def _jobs() -> int:
    """The number of compilations that this machine's cores and memory allow at a time, at least 1."""
    return max(1, min(host.cores(), int(host.memory() / JOB_BYTES)))


if __name__ == "__main__":
    interrupted = "stopped; the programs compiled so far are cached"
    code = cli.run(functools.partial(app.run, main, flags_parser=parse), interrupted)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # Python would wait for compilations, which cannot be stopped
