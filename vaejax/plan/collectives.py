"""The devices that a collective connects, and the bytes that each of them sends, by ring algorithms."""

import math
import re
from collections.abc import Sequence

import numpy as np

_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
_MESH = re.compile(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))? ?\{{([^}}]*)\}}")
_COUNTED = re.compile(rf"replica_groups=\[(\d+),(\d+)\]<={_ORDER}")
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def sent(kind: str, rest: str) -> float:
    """Bytes that a device sends per byte of its operand.

    Args:
      kind: one of KINDS.
      rest: what follows the operands in the text of the instruction.
    """
    return 1.0 if kind == "collective-permute" else _share(kind, len(group(rest)))


def crossing(kind: str, rest: str, slices: Sequence[int]) -> float:
    """Bytes per byte of its operand that a device sends to other slices or nodes.

    All devices of a slice that belong to a group share what the slice sends.

    Args:
      kind: one of KINDS.
      rest: what follows the operands in the text of the instruction.
      slices: slice of each device of the mesh, in its order; () if there is only one slice.
    """
    if not slices:
        return 0.0
    if kind == "collective-permute":
        pairs = _pairs(rest)
        return sum(slices[a] != slices[b] for a, b in pairs) / max(1, len(pairs))
    members = [slices[i] for i in group(rest)]
    count = len(set(members))
    inside = len(members) / count  # members in the same slice
    if kind == "all-to-all":
        return (len(members) - inside) / len(members)
    return _share(kind, count) / (1 if kind == "all-gather" else inside)


def group(rest: str) -> list[int]:
    """The positions in the mesh of the devices in the first group; [0] if the text has no replica groups."""
    if named := re.search(
        rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))? ?\{{([^}}]*)\}}", rest
    ):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        order = _ordered(named[2], named[3]) if named[2] else np.arange(math.prod(sizes.values()))
        axes, grid = list(sizes), order.reshape(*sizes.values())
        chosen = [axes.index(axis) for axis in re.findall(r"'(\w+)'", named[4])]
        others = [i for i in range(len(axes)) if i not in chosen]
        return (
            grid.transpose(*others, *chosen).reshape(-1, math.prod(grid.shape[i] for i in chosen))[0].tolist()
        )
    if counted := _COUNTED.search(rest):
        return _ordered(counted[3], counted[4]).reshape(int(counted[1]), int(counted[2]))[0].tolist()
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(member) for member in listed[1].split(",")]
    if "replica_groups=" in rest:
        raise ValueError(f"unknown replica groups: {rest[:200]}")
    return [0]


def _ordered(sizes: str, axes: str | None) -> np.ndarray:
    """Device numbers in the order that a text such as [2,4]T(1,0) describes."""
    shape = [int(size) for size in sizes.split(",")]
    grid = np.arange(math.prod(shape)).reshape(shape)
    return (grid.transpose([int(axis) for axis in axes.split(",")]) if axes else grid).reshape(-1)


def _pairs(rest: str) -> list[tuple[int, int]]:
    found = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", rest)
    return [(int(a), int(b)) for a, b in re.findall(r"\{(\d+),(\d+)\}", found[1])] if found else []


def _share(kind: str, n: int) -> float:
    """Bytes that one of `n` devices sends per byte of its operand."""
    if kind == "all-gather":
        return n - 1
    return (2 if kind == "all-reduce" else 1) * (n - 1) / n
