"""Runs python -m vaejax.plan once its flags are parsed."""

import concurrent.futures
import functools
import json
import pathlib
import shlex
import sys
from typing import Any

import jax

from vaejax import cli
from vaejax.codec.load import load_vae
from vaejax.config import Config, check
from vaejax.data.bucket import buckets_of
from vaejax.models import families
from vaejax.plan import evaluation, suggestion, table
from vaejax.plan.cost import Costs
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology
from vaejax.runtime import host
from vaejax.runtime import mesh as sharding
from vaejax.train.initial import with_latents_of
from vaejax.train.programs import Programs

JOB_BYTES = 4e9  # approximate memory that compiling one program takes


def run(
    config: Any, *, topology: str, samples: int, price: float, json_file: str, jobs: int, suggest: bool
) -> int:
    """Prints the plan of a run; the arguments are the values of the command's flags.

    Returns:
      0 if every program fits, else 1.

    Raises:
      InputError: if a flag or a setting cannot be used.
    """
    target, config = Topology.of(topology), check(config)
    costs = Costs(target, functools.partial(print, file=sys.stderr))
    compiled = functools.partial(plan, topology=target, costs=costs, jobs=jobs or _jobs())
    arguments = [shlex.quote(a) for a in sys.argv[1:] if a.startswith(("--config=", "--config."))]
    if suggest:
        config = suggestion.best(config, target, functools.partial(compiled, updates_only=True))
        arguments += suggestion.flags(config)
    prediction = compiled(config)
    print(table.text(config, target, prediction, samples, price))
    print("\n" + table.last_words(target, prediction, arguments, suggested=suggest))
    if json_file:
        numbers = table.numbers(config, target, prediction, samples, price)
        with cli.writing(json_file, "--json"):
            pathlib.Path(json_file).write_text(json.dumps(numbers, indent=2) + "\n")
    return 0 if prediction.all_fit else 1


def plan(
    config: Config, topology: Topology, costs: Costs, jobs: int = 1, updates_only: bool = False
) -> Prediction:
    """Predicts the cost of a run's last update and evaluation; compiles the programs that are not cached.

    The last update also has the loss terms that start later in a run. The bucket with the most pixels per
    batch is compiled first.

    Args:
      config: the configuration to plan.
      topology: the topology to compile for.
      costs: cache of the costs of programs for this topology.
      jobs: number of programs to compile at once.
      updates_only: whether to leave out evaluation and the probe.

    Raises:
      InputError: if the configuration does not suit the topology.
    """
    start = config.init or config.teacher
    known = load_vae(start) if start else None
    config = with_latents_of(config, known)
    mesh = sharding.make_mesh(config.mesh, topology.devices, topology.slice_of)
    slices = [topology.slice_of(device) for device in mesh.devices.flat]
    slices = slices if len(set(slices)) > 1 else []
    buckets = buckets_of(config, sharding.batch_parts(mesh), sharding.height_parts(mesh))
    programs = Programs.of(config, buckets, mesh, known=known)
    phase = programs.phase(config.steps - 1)
    everything = json.loads(json.dumps(config.to_dict()))
    made_from = {key: everything[key] for key in ("model", "loss", "optim", "ema", "mesh", "steps")}
    architectures = [programs.model.architecture] + ([known.architecture] if known else [])
    made_from["architectures"] = [families.to_json(one) for one in architectures]
    made_from["buckets"] = sorted(b.name for b in buckets)  # the buckets decide which discriminators exist
    pool, submitted = concurrent.futures.ThreadPoolExecutor(jobs), {}
    try:
        for number, bucket in enumerate(sorted(buckets, key=lambda b: -b.pixels * b.batch), 1):
            submitted[bucket.name] = pool.submit(
                costs.of,
                f"{bucket.name}, batch {bucket.batch} ({number} of {len(buckets)})",
                made_from | {"bucket": [bucket.name, bucket.batch, bucket.micro, bucket.weight]},
                functools.partial(programs.gradients, phase, bucket),
                functools.partial(programs.model_flops, phase, bucket),
                slices,
            )
        submitted["update"] = pool.submit(
            costs.of, "the update", made_from, lambda: programs.apply(phase), lambda: 0, slices
        )
        others = {} if updates_only else dict(evaluation.programs_of(config, programs, buckets, known))
        settings = {key: everything[key] for key in ("probe", "panels")}
        settings["at once"] = {b.name: b.at_once for b in buckets}
        for name, trace in others.items():
            source = made_from | settings | {"program": name}
            submitted[name] = pool.submit(costs.of, name, source, trace, lambda: 0, slices)
        costs_by_name = {name: cost.result() for name, cost in submitted.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    discriminators = [one.params for one in programs.state.discriminators.values()]
    networks = [programs.state.params, programs.state.frozen, discriminators]
    state = sharding.device_bytes([programs.state, programs.accumulated(phase)])
    held = [programs.networks, known.params if known else {}]
    state += sum(leaf.nbytes for leaf in jax.tree.leaves(held))
    parameters = sharding.device_bytes(networks)
    return Prediction(buckets, costs_by_name, parameters, state, mesh.size, topology.chip, topology.shape)


def _jobs() -> int:
    """The number of compilations that this machine's cores and memory allow at once, at least 1."""
    return max(1, min(host.cores(), int(host.memory() / JOB_BYTES)))
