"""A search for the batch size and the mesh with the most predicted samples a second that fit."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from vaejax.config import Config, builders
from vaejax.data.bucket import Bucket
from vaejax.errors import InputError
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology

SCALES = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of all batches alike
TRIES = 4  # estimates that are compiled
WORTH = 1.02  # times as many samples a second as the best so far, for which one is
GATHERED = 2  # times that an update gathers parameters: for the forward and for the backward pass


class Key(NamedTuple):
    """How a configuration differs from the one that was asked about."""

    fsdp: int
    space: int
    scale: float


def best(config: Config, where: Topology, plan: Callable[[Config], Prediction]) -> Config:
    """The best configuration that differs in mesh.fsdp, mesh.space and the scale of all batches.

    The first plan that is compiled is of the configuration or, where that does not suit the topology, of the
    nearest that does. All others are estimated from a plan whose programs fit: work and activations are in
    proportion to a chip's share of the samples, however the mesh cuts them. The best estimate is compiled and
    the rest are estimated anew, until none promises more than the best that was compiled and fits.

    Raises:
      InputError: where nothing that was tried fits, or the topology's chips are not known.
    """
    if where.chip is None:
        raise InputError(f"--suggest with --topology={where.name}; accepted: a TPU's, whose limits are known")
    chips = len(where.devices)
    powers = [2**i for i in range(12) if 2**i <= chips]
    keys = [Key(*key) for key in itertools.product(powers, powers[:4], SCALES) if key[0] * key[1] <= chips]
    every = {key: _changed(config, key) for key in keys}
    every = {key: changed for key, changed in every.items() if _suits(changed, config, chips)}
    first = Key(config.mesh.fsdp, config.mesh.space, 1)
    if _suits(config, config, chips):
        every[first] = config
    elif every:
        first = min(every, key=lambda key: (abs(math.log(key.scale)), key.space, -key.fsdp))
    else:
        raise InputError(
            f"--suggest: no scale of these batches suits {chips} chips; accepted: batches, or up to"
            f" {SCALES[-1]} times as many, that the mesh divides"
        )
    basis, tried = first, {first: plan(every[first])}
    for _ in range(TRIES):
        promised = _promised(basis, tried, every)
        if not promised:
            break
        key = max(promised, key=lambda key: (promised[key], -key.space, -key.fsdp, -key.scale))
        print(
            f"trying fsdp {key.fsdp}, space {key.space}, {_batches(every[key])}:"
            f" {promised[key]:,.0f} samples/s by an estimate",
            file=sys.stderr,
        )
        tried[key] = plan(every[key])
        if all(cost.fits for cost in tried[key].costs.values()):
            basis = key
    speeds = _speeds(tried)
    if not speeds:
        raise InputError(
            f"--suggest: none of the {len(tried)} that were tried fits; accepted: a smaller model, more of"
            " model.remat, more chips"
        )
    found = every[max(speeds, key=speeds.__getitem__)]
    flags = [f"--config.mesh.{axis}={getattr(found.mesh, axis)}" for axis in ("data", "fsdp", "space")]
    flags += [f"--config.data.buckets.{name}.batch={n}" for name, n in _batches(found).items()]
    print("suggested: " + " ".join(flags))
    return found


def _speeds(tried: Mapping[Key, Prediction]) -> dict[Key, float]:
    """Samples a second of what fits."""
    return {key: found.samples_per_second for key, found in tried.items() if found.all_fit}


def _promised(basis: Key, tried: Mapping[Key, Prediction], every: Mapping[Key, Config]) -> dict[Key, float]:
    """Estimated samples a second of what may fit and be worth compiling."""
    speeds, promised = _speeds(tried), {}
    too_large = [key for key in tried if key not in speeds]
    for key in every.keys() - tried.keys():
        if any(key.scale >= large.scale and key.fsdp <= large.fsdp for large in too_large):
            continue
        estimate = _estimated(tried[basis], every[basis], every[key])
        if estimate.all_fit and estimate.samples_per_second > WORTH * max(speeds.values(), default=0.0):
            promised[key] = estimate.samples_per_second
    return promised


def _changed(config: Config, key: Key) -> Config:
    mesh = dataclasses.replace(config.mesh, data=0, fsdp=key.fsdp, space=key.space)
    buckets = {
        name: {**fields, "batch": int(fields["batch"] * key.scale)}
        for name, fields in config.data.buckets.items()
    }
    return dataclasses.replace(config, mesh=mesh, data=dataclasses.replace(config.data, buckets=buckets))


def _batches(config: Config) -> dict[str, int]:
    return {name: fields["batch"] for name, fields in config.data.buckets.items() if fields["batch"]}


def _suits(changed: Config, config: Config, chips: int) -> bool:
    """Whether so many chips can have that mesh and those batches, none of which became 0."""
    mesh = changed.mesh
    if (mesh.data or chips // (mesh.fsdp * mesh.space)) * mesh.fsdp * mesh.space != chips:
        return False
    try:
        return len(_buckets(changed, chips)) == len(_batches(config))
    except InputError:
        return False


def _buckets(config: Config, chips: int) -> Sequence[Bucket]:
    return builders.buckets(config, chips // config.mesh.space, config.mesh.space)


def _estimated(base: Prediction, config: Config, changed: Config) -> Prediction:
    """What another mesh and other batches would need."""
    mesh, buckets = changed.mesh, _buckets(changed, base.chips)
    before = {b.name: b.batch for b in base.buckets}
    links = _exchanged(config.mesh.fsdp, base.chips)
    links = links and _exchanged(mesh.fsdp, base.chips) / links  # none where there is one chip
    shard, update = config.mesh.fsdp / mesh.fsdp, base.costs["update"]
    costs = {
        "update": dataclasses.replace(
            update,
            memory_traffic=update.memory_traffic * shard,
            temporary=round(base.work("update") * shard),
            output=0,
            aliased=0,
            fits=True,
        )
    }
    for b in buckets:
        cost, work = base.costs[b.name], b.batch / before[b.name]
        costs[b.name] = dataclasses.replace(
            cost,
            flops=round(cost.flops * work),
            model_flops=round(cost.model_flops * work),
            memory_traffic=cost.memory_traffic * work,
            collectives={kind: sent * links for kind, sent in cost.collectives.items()},
            temporary=round(base.work(b.name) * work),
            output=0,
            aliased=0,
            fits=True,
        )
    parameters, state = (round(size * shard) for size in (base.parameters, base.state))
    return dataclasses.replace(base, buckets=buckets, costs=costs, parameters=parameters, state=state)


def _exchanged(fsdp: int, chips: int) -> float:
    """Bytes that a chip sends for each byte of the gradients, which fsdp shards and the rest share."""
    rest = chips // fsdp
    return (GATHERED + 1) * (fsdp - 1) / fsdp + 2 * (rest - 1) / rest / fsdp
