"""Peak performance of accelerators by data sheet, and the memory that TPUs leave to programs."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One TPU chip.

    Attributes:
      flops: peak dense bfloat16 operations per second.
      memory: bytes that programs may use, as libtpu's out-of-memory errors report; the runtime keeps the
        rest.
      bandwidth: bytes per second of the memory.
      interconnect: bytes per second, each way, of all links to other chips together.
      dimensions: number of dimensions of the torus of chips; each has an equal share of the links.
      ring: a dimension of a slice is a ring if its length is a multiple of this, else a line.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    dimensions: int
    ring: int

    def link(self, shape: Sequence[int]) -> float:
        """Bytes per second that a chip receives along the slowest dimension of a slice.

        In a ring it receives from both sides. The ends of a line have one neighbor, and the other chips wait
        for them.

        Args:
          shape: number of chips along each dimension of the slice.
        """
        rings = all(length % self.ring == 0 for length in shape)
        return self.interconnect / self.dimensions / (1 if rings else 2)


GIB = 2**30
# A key matches a `jax.Device.device_kind` that contains the key as whole words.
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
    """The TPU chip of a `jax.Device.device_kind`; None if it is not listed here."""
    return _named(kind, TPUS)


def peak_flops(kind: str) -> float:
    """Peak dense bfloat16 operations per second of a TPU or GPU; 0 if it is not listed here."""
    tpu = chip(kind)
    return tpu.flops if tpu else _named(kind, GPU_FLOPS) or 0.0


def _named(kind: str, known: Mapping[str, Any]) -> Any:
    """The value of the longest name that is part of `kind`; None if there is none.

    Only whole words count: an L40 is not an L4.
    """
    names = [name for name in known if re.search(rf"\b{re.escape(name)}\b", kind)]
    return known[max(names, key=len)] if names else None
