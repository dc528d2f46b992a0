"""What accelerators can do at most, by their makers' data sheets, and of TPUs' memory by their compiler."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
      flops: bfloat16 operations a second, dense.
      memory: bytes that programs may use, as libtpu tells where one does not fit; the runtime keeps the rest.
      bandwidth: of the memory, bytes a second.
      interconnect: to other chips, all links together, bytes a second each way.
      dimensions: of the torus that the links make, each having its share of them.
      ring: a dimension of a slice is a ring where its length is a multiple of this, else a line.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    dimensions: int
    ring: int

    def link(self, shape: Sequence[int]) -> float:
        """Bytes a second that a chip of a slice receives along one dimension, the slowest of them.

        Both ways round a ring; on a line the ends have one neighbour, and the others wait for them.
        """
        rings = all(length % self.ring == 0 for length in shape)
        return self.interconnect / self.dimensions / (1 if rings else 2)


GIB = 2**30
# By a word, or words, of JAX's device kind.
TPUS = {
    "TPU v4": Chip(275e12, 30.5 * GIB, 1228e9, 300e9, 3, 4),
    "TPU v5 lite": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 2, 16),
    "TPU v5": Chip(459e12, 95.73 * GIB, 2765e9, 600e9, 3, 4),
    "TPU v6 lite": Chip(918e12, 31.24 * GIB, 1638e9, 400e9, 2, 16),
}
TPUS |= {"TPU v5e": TPUS["TPU v5 lite"], "TPU v5p": TPUS["TPU v5"], "TPU v6e": TPUS["TPU v6 lite"]}
GPU_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def chip(kind: str) -> Chip | None:
    """The TPU of `jax.Device.device_kind`; None where it is none whose data sheet is here."""
    return _named(kind, TPUS)


def flops(kind: str) -> float:
    """bfloat16 operations a second at most, dense, of a TPU or GPU; 0 where no data sheet is here."""
    tpu = chip(kind)
    return tpu.flops if tpu else _named(kind, GPU_FLOPS) or 0.0


def _named(kind: str, known: Mapping[str, Any]) -> Any:
    """What stands under the longest name that is a part of `kind`, in whole words: an L40 is no L4."""
    names = [name for name in known if re.search(rf"\b{re.escape(name)}\b", kind)]
    return known[max(names, key=len)] if names else None
