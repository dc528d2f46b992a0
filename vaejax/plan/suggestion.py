"""A search for the batch size and the mesh with the most predicted samples a second that fit."""

import dataclasses
import itertools
import json
import math
import sys
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from vaejax import config as configuration
from vaejax.data.bucket import Bucket
from vaejax.errors import InputError
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology

SCALES = (0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32)  # of all batches alike
TRIES = 4  # estimates that are compiled, the best first
GATHERED = 2  # times that an update gathers parameters: for the forward and for the backward pass


def best(config: ConfigDict, where: Topology, plan: Callable[[ConfigDict], Prediction]) -> ConfigDict:
    """The best configuration that differs in mesh.fsdp, mesh.space and the scale of all batches.

    One plan is compiled, of the configuration or, where that does not suit the topology, of the nearest that
    does; the others are estimated from it: work and activations are in proportion to a chip's share of the
    samples, however the mesh cuts them. The best are compiled until one fits.

    Raises:
      InputError: where none does, or the topology's chips are not known.
    """
    if where.chip is None:
        raise InputError(f"--suggest with --topology={where.name}; accepted: a TPU's, whose limits are known")
    chips, estimates = len(where.devices), []
    powers = [2**i for i in range(12) if 2**i <= chips]
    every = {
        key: _changed(config, *key)
        for key in itertools.product(powers, powers[:4], SCALES)
        if key[0] * key[1] <= chips
    }
    every = {key: changed for key, changed in every.items() if _suits(changed, config, chips)}
    start = config
    if not _suits(config, config, chips):
        if not every:
            raise InputError(
                f"--suggest: no scale of these batches suits {chips} chips; accepted: batches, or up to"
                f" {SCALES[-1]} times as many, that the mesh divides"
            )
        start = every[min(every, key=lambda key: (abs(math.log(key[2])), key[1], -key[0]))]
    base = plan(start)
    for (fsdp, space, scale), changed in every.items():
        estimate = _estimated(base, start, changed)
        if all(estimate.fits(name) for name in estimate.costs):
            estimates.append((estimate.samples_per_second, -space, -fsdp, -scale, changed))
    for *_, changed in sorted(estimates, key=lambda one: one[:4], reverse=True)[:TRIES]:
        mesh = changed.mesh
        print(f"trying fsdp {mesh.fsdp}, space {mesh.space}, {_batches(changed)}", file=sys.stderr)
        found = plan(changed)
        if all(found.fits(name) for name in found.costs):
            flags = [f"--config.mesh.fsdp={mesh.fsdp}", f"--config.mesh.space={mesh.space}"]
            flags += [f"--config.data.buckets.{name}.batch={n}" for name, n in _batches(changed).items()]
            print("suggested: " + " ".join(flags))
            return changed
    raise InputError("--suggest: nothing fits; accepted: a smaller model, more of model.remat, more chips")


def _changed(config: ConfigDict, fsdp: int, space: int, scale: float) -> ConfigDict:
    changed = ConfigDict(json.loads(config.to_json_best_effort()))
    changed.mesh.update({"data": 0, "fsdp": fsdp, "space": space})
    for fields in changed.data.buckets.values():
        fields.batch = int(fields.batch * scale)
    return changed


def _batches(config: ConfigDict) -> dict[str, int]:
    return {name: fields.batch for name, fields in config.data.buckets.items() if fields.batch}


def _suits(changed: ConfigDict, config: ConfigDict, chips: int) -> bool:
    """Whether so many chips can have that mesh and those batches, none of which became 0."""
    mesh = changed.mesh
    if (mesh.data or chips // (mesh.fsdp * mesh.space)) * mesh.fsdp * mesh.space != chips:
        return False
    try:
        return len(_buckets(changed, chips)) == len(_batches(config))
    except InputError:
        return False


def _buckets(config: ConfigDict, chips: int) -> Sequence[Bucket]:
    return configuration.buckets(config, chips // config.mesh.space, config.mesh.space)


def _estimated(base: Prediction, config: ConfigDict, changed: ConfigDict) -> Prediction:
    """What another mesh and other batches would need."""
    mesh, buckets = changed.mesh, _buckets(changed, base.chips)
    before = {b.name: b.batch for b in base.buckets}
    links = _exchanged(config.mesh.fsdp, base.chips)
    links = links and _exchanged(mesh.fsdp, base.chips) / links  # none where there is one chip
    costs = {"update": base.costs["update"]}
    for b in buckets:
        cost, work = base.costs[b.name], b.batch / before[b.name]
        costs[b.name] = dataclasses.replace(
            cost,
            flops=round(cost.flops * work),
            model_flops=round(cost.model_flops * work),
            memory_traffic=cost.memory_traffic * work,
            collectives={kind: sent * links for kind, sent in cost.collectives.items()},
            temporary=round(cost.temporary * work),
            fits=True,
        )
    parameters, state = (round(size * config.mesh.fsdp / mesh.fsdp) for size in (base.parameters, base.state))
    return dataclasses.replace(base, buckets=buckets, costs=costs, parameters=parameters, state=state)


def _exchanged(fsdp: int, chips: int) -> float:
    """Bytes that a chip sends for each byte of the gradients, which fsdp shards and the rest share."""
    rest = chips // fsdp
    return (GATHERED + 1) * (fsdp - 1) / fsdp + 2 * (rest - 1) / rest / fsdp
