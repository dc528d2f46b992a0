"""A plan as a table for the console and as numbers for JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from vaejax.config import Config
from vaejax.data.bucket import Bucket
from vaejax.models.families import architecture_of
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology

GB = 1e9
PARTS = ("compute", "memory", "cycles", "links", "total")  # keys of `Prediction.seconds`
COLUMNS = ("batch", "work GB", "needs GB", "TFLOP", "moved GB", "sent MB")
COLUMNS += (*(f"{part} ms" for part in PARTS), "samples/s", "MFU")
LEGEND = "per chip: work = activations and temporaries; needs = work, state and code; moved = memory traffic;"
LEGEND += " sent = traffic to other chips"
TIMES_LEGEND = "; cycles = libtpu's estimate of the time without links; total = the longest, and links;"
TIMES_LEGEND += " MFU = share of peak FLOP/s"


def numbers(
    config: Config, topology: Topology, prediction: Prediction, samples: float = 0, price: float = 0
) -> dict[str, Any]:
    """All numbers of a plan, ready for JSON: bytes and FLOPs per chip, times in seconds unless named hours.

    Args:
      config: the planned configuration.
      topology: the topology of the plan.
      prediction: the plan.
      samples: samples to train on; 0 means those of config.steps updates.
      price: price of one chip for an hour.
    """
    mesh, programs, timed = config.mesh, {}, {b.name for b in prediction.buckets} | {"update"}
    for name, cost in prediction.costs.items():
        programs[name] = {
            "fits": prediction.fits(name),
            "bytes": {
                "needed": prediction.needed(name),
                "activations": prediction.work(name),
                "code": cost.code,
                "traffic": cost.memory_traffic,
                "sent": cost.collectives,
            },
            "flops": cost.flops / prediction.chips,
            "model_flops": cost.model_flops / prediction.chips,
            "compile_seconds": cost.seconds,
        }
        if prediction.is_timed and cost.fits and name in timed:
            programs[name]["seconds"] = prediction.seconds(name)
    plan = {
        "topology": topology.name,
        "chips": prediction.chips,
        "mesh": {
            "data": prediction.chips // (mesh.fsdp * mesh.space),
            "fsdp": mesh.fsdp,
            "space": mesh.space,
        },
        "batches": {b.name: b.batch for b in prediction.buckets},
        "bytes": {
            "room": prediction.room if prediction.chip else None,
            "parameters": prediction.parameters,
            "state": prediction.state,
            "code": prediction.code,
        },
        "programs": programs,
    }
    if prediction.is_timed and all(prediction.costs[name].fits for name in timed):
        samples = samples or config.steps * sum(b.batch / b.every for b in prediction.buckets)
        hours = samples / prediction.samples_per_second / 3600
        plan["update"] = {
            "seconds": prediction.update_seconds,
            "roofline_seconds": prediction.roofline_seconds,
            "estimate": prediction.estimate,
            "samples_per_second": prediction.samples_per_second,
            "flop_utilisation": prediction.utilization,
            "bytes_sent": prediction.sent,
        }
        plan["run"] = {"samples": samples, "hours": hours, "cost": hours * prediction.chips * price}
    return plan


def text(
    config: Config, topology: Topology, prediction: Prediction, samples: float = 0, price: float = 0
) -> str:
    """The plan as a table, with remedies for programs that do not fit; arguments as for `numbers`."""
    plan = numbers(config, topology, prediction, samples, price)
    mesh, chip = plan["mesh"], prediction.chip
    lines = [
        f"{topology.name}: {prediction.chips} chips as a mesh of data {mesh['data']} x fsdp {mesh['fsdp']} x"
        f" space {mesh['space']}",
        f"memory per chip: state {prediction.state / GB:.2f} GB (parameters"
        f" {prediction.parameters / GB:.2f} GB), code {prediction.code / GB:.2f} GB"
        + (f", available {chip.room}" if chip else ", available: unknown for CPUs"),
        "",
        *_table(prediction),
        LEGEND + (TIMES_LEGEND if prediction.is_timed else ""),
        *_remedies(config, prediction),
    ]
    if chip and not prediction.is_timed:
        lines.append("(Memory is not calibrated against a real GPU, and no times are predicted for GPUs.)")
    if "update" in plan:
        update, run = plan["update"], plan["run"]
        lines += [
            "",
            f"one update: {update['seconds']:.3f} s, {update['samples_per_second']:,.0f} samples/s,"
            f" {100 * update['flop_utilisation']:.0f}% of peak FLOP/s,"
            f" {update['bytes_sent'] / 1e6:,.0f} MB sent per chip",
            f"(by {update['estimate']}; the roofline alone says {update['roofline_seconds']:.3f} s)",
            f"{run['samples']:,.0f} samples: {run['hours']:,.1f} hours"
            + (f", {run['cost']:,.0f} at {price:g} per chip-hour" if price else ""),
            "(A real run may be slower. Only updates are counted, not evaluation or checkpoints.)",
        ]
    return "\n".join(lines)


def last_words(topology: Topology, prediction: Prediction, arguments: Sequence[str], suggested: bool) -> str:
    """The summary of a plan: what was planned, whether it fits, and the next command.

    Args:
      topology: the topology of the plan.
      prediction: the plan.
      arguments: the --config flags of the planned configuration.
      suggested: whether the plan is already the best that --suggest found.
    """
    count = len(prediction.buckets)
    too_large = [name for name in prediction.costs if not prediction.fits(name)]
    flags = " ".join(arguments)
    if not too_large:
        verdict = "everything fits" if prediction.chip else "memory limits are unknown for CPUs"
        command = f"python -m vaejax.main {flags} --workdir=DIR"
    else:
        verdict = f"does not fit: {', '.join(too_large)}"
        more = "" if suggested else " --suggest"
        command = f"python -m vaejax.plan {flags} --topology={topology.name}{more}"
    planned = f"{count} bucket{'s' * (count != 1)}, the optimizer step and evaluation"
    return f"planned {planned} for {topology.name}: {verdict}\nnext: {command}"


def _table(prediction: Prediction) -> Iterator[str]:
    """A row for each program under headers; columns that are empty in every row are left out."""
    buckets: dict[str, Bucket | None] = {b.name: b for b in prediction.buckets}
    names = dict.fromkeys([*buckets, "update", *prediction.costs])
    rows = {name: _cells(name, buckets.get(name), prediction) for name in names}
    shown = [column for column in COLUMNS if any(column in cells for cells in rows.values())]
    width = max(20, *map(len, rows))
    yield _line(f"{'program':{width}}", shown, shown)
    for name, cells in rows.items():
        line = _line(f"{name:{width}}", shown, [cells.get(column, "") for column in shown])
        yield line + ("" if prediction.fits(name) else "  does not fit")


def _line(name: str, columns: Sequence[str], cells: Sequence[str]) -> str:
    width = zip(columns, cells, strict=True)
    return name + "".join(f"  {cell:>{max(6, len(column))}}" for column, cell in width)


def _cells(name: str, bucket: Bucket | None, prediction: Prediction) -> dict[str, str]:
    """The cells of a program's row by column."""
    cost, chip = prediction.costs[name], prediction.chip
    cells = {
        "work GB": f"{prediction.work(name) / GB:.2f}",
        "needs GB": f"{prediction.needed(name) / GB:.2f}",
        "TFLOP": f"{cost.flops / prediction.chips / 1e12:.2f}",
    }
    if bucket:
        cells["batch"] = str(bucket.batch)
    if cost.fits:
        cells |= {"moved GB": f"{cost.memory_traffic / GB:.1f}", "sent MB": f"{cost.sent / 1e6:.0f}"}
    if cost.fits and chip and prediction.is_timed and (bucket or name == "update"):
        seconds = prediction.seconds(name)
        cells |= {f"{part} ms": f"{1e3 * seconds[part]:.1f}" for part in PARTS}
        if bucket:
            mfu = cost.model_flops / prediction.chips / chip.flops / seconds["total"]
            cells |= {"samples/s": f"{bucket.batch / seconds['total']:,.0f}", "MFU": f"{100 * mfu:.0f}%"}
    return cells


def _remedies(config: Config, prediction: Prediction) -> Iterator[str]:
    """For each program that does not fit, settings that may make it fit, estimated from its needs."""
    room, last_resort = prediction.room, "a smaller model, or chips with more memory"
    if not prediction.fits("update"):
        more = _more_fsdp(config, prediction.chips)
        yield (
            f"update needs {prediction.needed('update') / GB:.1f} GB, but only {room / GB:.1f} GB are"
            f" available; try {more + ', ' if more else ''}{last_resort}"
        )
    buckets = {bucket.name: bucket for bucket in prediction.buckets}
    for name in prediction.costs:
        if prediction.fits(name) or name == "update":
            continue
        bucket, remedies = buckets.get(name.split()[-1]), []
        left = max(0.0, room - prediction.state - prediction.code)
        share = left / max(1, prediction.work(name))
        if bucket:
            remedies += _in_pieces(bucket, share, config, prediction.chips)
        if name in buckets:
            remedies += _smaller(buckets[name], share, config, prediction.chips)
            levels = tuple(range(architecture_of(config.model).encoder.levels))
            if set(levels) - set(config.model.remat):
                remedies.append(f"--config.model.remat='{levels}'")
        if prediction.state > 0.2 * room and (more := _more_fsdp(config, prediction.chips)):
            remedies.append(more)
        yield (
            f"{name} needs {prediction.needed(name) / GB:.1f} GB, but only {room / GB:.1f} GB"
            f" are available; try {', or '.join(remedies) or last_resort}"
        )


def _more_fsdp(config: Config, chips: int) -> str:
    """The flag that doubles mesh.fsdp; '' if mesh.data is set or the chips cannot form that mesh."""
    mesh = config.mesh
    return "" if mesh.data or chips % (2 * mesh.fsdp * mesh.space) else f"--config.mesh.fsdp={2 * mesh.fsdp}"


def _in_pieces(bucket: Bucket, share: float, config: Config, chips: int) -> Iterator[str]:
    """Yields the flag that computes at most `share` of a batch at once, or nothing if that is impossible."""
    parts = chips // config.mesh.space
    for micro in range(int(bucket.at_once * share) // parts * parts, 0, -parts):
        whole = micro % chips == 0 or bucket.height % (config.model.spatial_factor * config.mesh.space) == 0
        if bucket.batch % micro == 0 and whole:
            yield f"--config.data.buckets.{bucket.name}.micro={micro}"
            return


def _smaller(bucket: Bucket, share: float, config: Config, chips: int) -> Iterator[str]:
    """Yields a string of flags that reduce a batch to at most `share` of its size, or nothing.

    A batch must be a multiple of chips / mesh.space. If every such multiple above 0 is too large, mesh.space
    is doubled until one is small enough, unless mesh.data is set. If a batch is not a multiple of `chips`,
    the mesh splits the height of its latents into mesh.space parts, so mesh.space must divide that height.
    """
    mesh, factor = config.mesh, config.model.spatial_factor
    for doublings in range(1 if mesh.data else 8):
        space = mesh.space * 2**doublings
        if chips % (mesh.fsdp * space):
            return
        parts = chips // space
        batch = int(bucket.batch * share) // parts * parts
        if batch and (batch % chips == 0 or bucket.height % (factor * space) == 0):
            split = f"--config.mesh.space={space} and " if space != mesh.space else ""
            yield f"{split}--config.data.buckets.{bucket.name}.batch={batch}"
            return
