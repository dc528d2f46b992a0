"""What accelerators can do at most, by their makers' data sheets."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: bfloat16 operations a second, dense.
      memory: bytes.
      bandwidth: of the memory, bytes a second.
      interconnect: to other chips, all links together, bytes a second each way.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


GIB = 2**30
# By a part of JAX's device kind; the first that fits counts.
CHIPS = {
    "TPU v4": Chip(275e12, 32 * GIB, 1228e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32 * GIB, 1638e9, 400e9),
    "H100 PCIe": Chip(756e12, 80e9, 2000e9, 64e9),
    "H100": Chip(989e12, 80e9, 3350e9, 450e9),
    "H200": Chip(989e12, 141e9, 4800e9, 450e9),
    "B200": Chip(2250e12, 180e9, 7700e9, 900e9),
    "A100": Chip(312e12, 80e9, 2039e9, 300e9),
    "L40S": Chip(362e12, 48e9, 864e9, 32e9),
    "L4": Chip(121e12, 24e9, 300e9, 32e9),
    "RTX 4090": Chip(165e12, 24e9, 1008e9, 32e9),
}


def chip(kind: str) -> Chip | None:
    """The chip of `jax.Device.device_kind`; None where its data sheet is not here, a CPU's for one."""
    return next((chip for name, chip in CHIPS.items() if name in kind), None)
