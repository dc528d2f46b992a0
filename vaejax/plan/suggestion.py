"""A search for the batch sizes, pieces and mesh with the most predicted samples per second."""

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vaejax.config import Config
from vaejax.data.bucket import Bucket, buckets_of
from vaejax.errors import InputError
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology

# Factors on the samples whose gradients are computed at once. Above 1 they multiply all batch sizes; below 1
# the batches stay and are computed in pieces.
SCALES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
TRIES = 4  # at most this many plans are compiled after the first
WORTH = 1.02  # least estimated speed of a plan worth compiling, relative to the best so far
GATHERS = 2  # all-gathers of the parameters per update: one forward, one backward


class Key(NamedTuple):
    """A candidate configuration: mesh.fsdp, mesh.space, and one of SCALES."""

    fsdp: int
    space: int
    scale: float


def best(config: Config, topology: Topology, plan: Callable[[Config], Prediction]) -> Config:
    """The fastest configuration that fits; varies mesh.fsdp, mesh.space, and batch sizes or their pieces.

    The first plan compiles the configuration itself, or the nearest candidate that suits the topology. The
    other candidates are estimated from a compiled plan, assuming that work is proportional to the samples per
    chip, and activations to those computed at once, whatever the mesh. The candidate with the best estimate
    is compiled and the rest are estimated again. The search ends if no estimate exceeds WORTH times the speed
    of the best plan that fits, or after TRIES more plans.

    Args:
      config: the configuration to vary.
      topology: the topology to plan for.
      plan: function that compiles a configuration and predicts its cost.

    Raises:
      InputError: if no compiled plan fits, no candidate suits the topology, or the topology's chips are
        unknown.
    """
    if topology.chip is None:
        raise InputError(
            f"--topology={topology.name}: --suggest needs known chips; accepted: TPUs or GPUs, e.g. v5e:4x4"
            " or h100:8"
        )
    chips = len(topology.devices)
    powers = [2**i for i in range(12) if 2**i <= chips]
    keys = [Key(*key) for key in itertools.product(powers, powers[:4], SCALES) if key[0] * key[1] <= chips]
    candidates = {key: _changed(config, key) for key in keys}
    candidates = {key: one for key, one in candidates.items() if _suits(one, config, chips)}
    first = Key(config.mesh.fsdp, config.mesh.space, 1)
    if _suits(config, config, chips):
        candidates[first] = config
    elif candidates:
        first = min(candidates, key=lambda key: (abs(math.log(key.scale)), key.space, -key.fsdp))
    else:
        raise InputError(
            f"--suggest: the mesh cannot split these batch sizes over {chips} chips; accepted: multiples of"
            f" {chips} for every data.buckets.NAME.batch"
        )
    basis, tried = first, {first: plan(candidates[first])}
    for _ in range(TRIES):
        promised = _promised(basis, tried, candidates)
        if not promised:
            break
        key = max(promised, key=lambda key: (promised[key], -key.space, -key.fsdp, key.scale))
        best_so_far = max(_speeds(tried).values(), default=0.0)
        print(
            f"trying fsdp {key.fsdp}, space {key.space}, batches {_batches(candidates[key])}"
            + (f", at once {_pieces(candidates[key])}" if _pieces(candidates[key]) else "")
            + (f": estimated {promised[key] / best_so_far:.2f} times as fast" if best_so_far else ""),
            file=sys.stderr,
        )
        tried[key] = plan(candidates[key])
        if all(cost.fits for cost in tried[key].costs.values()):
            basis = key
    speeds = _speeds(tried)
    if not speeds:
        raise InputError(
            f"--suggest: none of the {len(tried)} compiled plans fits; accepted: a smaller model, more levels"
            " in model.remat, or more chips"
        )
    fastest = candidates[max(speeds, key=speeds.__getitem__)]
    print("suggested: " + " ".join(flags(fastest)))
    return fastest


def flags(config: Config) -> list[str]:
    """The command-line flags that set the mesh and the batch sizes of a configuration."""
    mesh = [f"--config.mesh.{axis}={getattr(config.mesh, axis)}" for axis in ("data", "fsdp", "space")]
    batches = [f"--config.data.buckets.{name}.batch={n}" for name, n in _batches(config).items()]
    return mesh + batches + [f"--config.data.buckets.{name}.micro={n}" for name, n in _pieces(config).items()]


def _speeds(tried: Mapping[Key, Prediction]) -> dict[Key, float]:
    """Predicted samples per second of the compiled plans that fit."""
    return {key: one.samples_per_second for key, one in tried.items() if one.all_fit}


def _promised(
    basis: Key, tried: Mapping[Key, Prediction], candidates: Mapping[Key, Config]
) -> dict[Key, float]:
    """Estimated samples per second of the candidates that may fit and are worth compiling."""
    speeds, promised = _speeds(tried), {}
    too_large = [key for key in tried if key not in speeds]
    for key in candidates.keys() - tried.keys():
        if any(key.scale >= large.scale and key.fsdp <= large.fsdp for large in too_large):
            continue
        estimate = _estimated(tried[basis], candidates[basis], candidates[key])
        if estimate.all_fit and estimate.samples_per_second > WORTH * max(speeds.values(), default=0.0):
            promised[key] = estimate.samples_per_second
    return promised


def _changed(config: Config, key: Key) -> Config:
    mesh = dataclasses.replace(config.mesh, data=0, fsdp=key.fsdp, space=key.space)
    buckets = {name: _scaled(fields, key.scale) for name, fields in config.data.buckets.items()}
    return dataclasses.replace(config, mesh=mesh, data=dataclasses.replace(config.data, buckets=buckets))


def _scaled(fields: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The fields of a bucket with a larger batch, or with one in smaller pieces of at least one sample."""
    batch, micro = fields["batch"], fields.get("micro", 0)
    if scale < 1:
        return {**fields, "micro": max(1, int((micro or batch) * scale)) if batch else 0}
    return {**fields, "batch": int(batch * scale), "micro": int(micro * scale)}


def _pieces(config: Config) -> dict[str, int]:
    return {name: fields["micro"] for name, fields in config.data.buckets.items() if fields.get("micro")}


def _batches(config: Config) -> dict[str, int]:
    return {name: fields["batch"] for name, fields in config.data.buckets.items() if fields["batch"]}


def _suits(changed: Config, config: Config, chips: int) -> bool:
    """Whether the mesh of `changed` uses all chips and can split every batch.

    Also False if a batch size above 0 in `config` became 0 in `changed`. Memory limits are not checked.
    """
    mesh = changed.mesh
    if (mesh.data or chips // (mesh.fsdp * mesh.space)) * mesh.fsdp * mesh.space != chips:
        return False
    try:
        return len(_buckets(changed, chips)) == len(_batches(config))
    except InputError:
        return False


def _buckets(config: Config, chips: int) -> Sequence[Bucket]:
    return buckets_of(config, chips // config.mesh.space, config.mesh.space)


def _estimated(base: Prediction, config: Config, changed: Config) -> Prediction:
    """The prediction for `changed`, scaled from `base`, the prediction compiled for `config`."""
    mesh, buckets = changed.mesh, _buckets(changed, base.chips)
    before = {b.name: b for b in base.buckets}
    links = _exchanged(config.mesh.fsdp, base.chips)
    links = links and _exchanged(mesh.fsdp, base.chips) / links  # 0 for a single chip, which sends nothing
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
        cost, was = base.costs[b.name], before[b.name]
        work, held = b.batch / was.batch, b.at_once / was.at_once
        costs[b.name] = dataclasses.replace(
            cost,
            flops=round(cost.flops * work),
            model_flops=round(cost.model_flops * work),
            memory_traffic=cost.memory_traffic * work,
            cycles=cost.cycles * work,
            collectives={kind: sent * links * work / held for kind, sent in cost.collectives.items()},
            crossing=cost.crossing * links * work / held,
            temporary=round(base.work(b.name) * held),
            output=0,
            aliased=0,
            fits=True,
        )
    parameters, state = (round(size * shard) for size in (base.parameters, base.state))
    return dataclasses.replace(base, buckets=buckets, costs=costs, parameters=parameters, state=state)


def _exchanged(fsdp: int, chips: int) -> float:
    """Bytes that a chip sends per update, per byte of parameters.

    The chips form groups of `fsdp`. Each group all-gathers parameters and reduce-scatters gradients. Then
    all-reduces add the gradients of all groups.
    """
    rest = chips // fsdp
    return (GATHERS + 1) * (fsdp - 1) / fsdp + 2 * (rest - 1) / rest / fsdp
