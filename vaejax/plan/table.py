"""A plan for people and for programs."""

from collections.abc import Iterator

from vaejax.config import Config, builders
from vaejax.data.bucket import Bucket
from vaejax.plan.prediction import Prediction
from vaejax.plan.topology import Topology

GB = 1e9
PARTS = ("compute", "memory", "links", "total")


def numbers(config: Config, where: Topology, found: Prediction, samples: int = 0, price: float = 0) -> dict:
    """All numbers, as JSON: bytes and FLOPs a chip, seconds.

    Args:
      config: that was planned.
      where: for which.
      found: the prediction.
      samples: to train on; 0 takes those of config.steps updates.
      price: of a chip for an hour.
    """
    mesh, programs = config.mesh, {}
    for name, cost in found.costs.items():
        programs[name] = {
            "fits": found.fits(name),
            "bytes": {
                "needed": found.needed(name),
                "activations": found.work(name),
                "code": cost.code,
                "traffic": cost.memory_traffic,
                "sent": cost.collectives,
            },
            "flops": cost.flops / found.chips,
            "model_flops": cost.model_flops / found.chips,
            "compile_seconds": cost.seconds,
        }
        if found.chip and cost.fits:
            programs[name]["seconds"] = found.seconds(name)
    whole = {
        "topology": where.name,
        "chips": found.chips,
        "mesh": {"data": found.chips // (mesh.fsdp * mesh.space), "fsdp": mesh.fsdp, "space": mesh.space},
        "batches": {b.name: b.batch for b in found.buckets},
        "bytes": {
            "room": found.room if found.chip else None,
            "parameters": found.parameters,
            "state": found.state,
            "code": found.code,
        },
        "programs": programs,
    }
    if found.chip and all(cost.fits for cost in found.costs.values()):
        samples = samples or config.steps * sum(b.batch / b.every for b in found.buckets)
        hours = samples / found.samples_per_second / 3600
        whole["update"] = {
            "seconds": found.update_seconds,
            "samples_per_second": found.samples_per_second,
            "flop_utilisation": found.utilisation,
            "bytes_sent": found.sent,
        }
        whole["run"] = {"samples": samples, "hours": hours, "cost": hours * found.chips * price}
    return whole


def text(config: Config, where: Topology, found: Prediction, samples: int = 0, price: float = 0) -> str:
    """The same as a table; arguments as `numbers`."""
    told = numbers(config, where, found, samples, price)
    mesh = told["mesh"]
    lines = [
        f"{where.name}: {found.chips} chips, mesh data {mesh['data']} x fsdp {mesh['fsdp']} x space"
        f" {mesh['space']}; a chip holds {found.state / GB:.2f} GB of state"
        f" ({found.parameters / GB:.2f} of parameters) and {found.code / GB:.2f} GB of programs"
        + (f", of {found.room / GB:.1f} GB" if found.chip else ""),
        "",
        _columns("", "", "GB", "GB", "TFLOP", "GB", "MB", "ms", "ms", "ms", "ms", "samples", "FLOP"),
        _columns("of a chip", "batch", "work", "in all", "", "moved", "sent", *PARTS, "/s", "use"),
    ]
    buckets = {b.name: b for b in found.buckets}
    for name in [*buckets, "update"]:
        lines.append(_row(name, buckets.get(name), found))
    lines += _problems(config, found)
    if "update" in told:
        update, run = told["update"], told["run"]
        lines += [
            "",
            f"an update: {update['seconds']:.3f} s, {update['samples_per_second']:,.0f} samples/s,"
            f" {100 * update['flop_utilisation']:.0f}% of the peak FLOP/s,"
            f" {update['bytes_sent'] / 1e6:,.0f} MB sent by a chip",
            f"{run['samples']:,.0f} samples: {run['hours']:,.1f} hours"
            + (f", {run['cost']:,.0f} at {price:g} a chip-hour" if price else ""),
            "(a roofline: real kernels are slower; all buckets alike; updates alone, not evaluation)",
        ]
    return "\n".join(lines)


def _row(name: str, bucket: Bucket | None, found: Prediction) -> str:
    cost, batch = found.costs[name], bucket.batch if bucket else ""
    cells = [batch, f"{found.work(name) / GB:.2f}", f"{found.needed(name) / GB:.2f}"]
    cells.append(f"{cost.flops / found.chips / 1e12:.2f}")
    if cost.fits:
        cells += [f"{cost.memory_traffic / GB:.1f}", f"{cost.sent / 1e6:.0f}"]
    if cost.fits and found.chip:
        seconds = found.seconds(name)
        cells += [f"{1e3 * seconds[part]:.1f}" for part in PARTS]
        if bucket:
            use = cost.model_flops / found.chips / found.chip.flops / seconds["total"]
            cells += [f"{batch / seconds['total']:,.0f}", f"{100 * use:.0f}%"]
    return _columns(name, *cells) + ("" if found.fits(name) else "  does not fit")


def _columns(name: str, *cells) -> str:
    return f"{name:20}" + "".join(f" {cell!s:>7}" for cell in cells)


def _problems(config: Config, found: Prediction) -> Iterator[str]:
    """Of each bucket that does not fit, what may do, estimated from what it needs now."""
    if not found.fits("update"):
        yield (
            f"the update needs {found.needed('update') / GB:.1f} GB of {found.room / GB:.1f}; what may do:"
            + (f" {more}," if (more := _more_fsdp(config, found.chips)) else "")
            + " a smaller model, or chips with more memory"
        )
    for bucket in found.buckets:
        if found.fits(bucket.name):
            continue
        needed, left = found.needed(bucket.name), max(0.0, found.room - found.state - found.code)
        remedies = [*_smaller(bucket, left / max(1, found.work(bucket.name)), config, found.chips)]
        levels = tuple(range(len(builders.architecture(config.model).strides) + 1))
        if set(levels) - set(config.model.remat):
            remedies.append(f"--config.model.remat='{levels}'")
        if found.state > 0.2 * found.room and (more := _more_fsdp(config, found.chips)):
            remedies.append(more)
        yield (
            f"{bucket.name} needs {needed / GB:.1f} GB of {found.room / GB:.1f}; what may do: "
            + (", or ".join(remedies) or "a smaller model, or chips with more memory")
        )


def _more_fsdp(config: Config, chips: int) -> str:
    """The flag of twice as many parts of the state; '' where the chips do not make such a mesh."""
    mesh = config.mesh
    return "" if mesh.data or chips % (2 * mesh.fsdp * mesh.space) else f"--config.mesh.fsdp={2 * mesh.fsdp}"


def _smaller(bucket: Bucket, share: float, config: Config, chips: int) -> Iterator[str]:
    """A batch of that share, with more parts of a frame's height where there would be too few samples."""
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
