"""Accelerators by data sheet: peak performance, links, and the memory that they leave to programs."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Tpu:
    """One TPU chip.

    Attributes:
      flops: peak dense bfloat16 operations per second.
      memory: bytes that programs may use, as libtpu's out-of-memory errors report; the runtime keeps the
        rest.
      bandwidth: bytes per second of the memory.
      interconnect: bytes per second, each way, of all links to other chips together.
      dimensions: number of dimensions of the torus of chips; each has an equal share of the links.
      ring: a dimension of a slice is a ring if its length is a multiple of this, else a line.
      clock: cycles per second.
      network: bytes per second, each way, to chips of other slices: a host's network, shared by its chips.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float
    dimensions: int
    ring: int
    clock: float
    network: float = 6.25e9  # 200 Gbit/s for 4 chips
    is_timed = True  # a roofline predicts the order of magnitude

    @property
    def room(self) -> str:
        """`memory` in words."""
        return f"{self.memory / 1e9:.1f} GB"

    def link(self, shape: Sequence[int]) -> float:
        """Bytes per second that a chip receives along the slowest dimension of a slice.

        In a ring it receives from both sides. The ends of a line have one neighbor, and the other chips wait
        for them.

        Args:
          shape: number of chips along each dimension of the slice.
        """
        rings = all(length % self.ring == 0 for length in shape)
        return self.interconnect / self.dimensions / (1 if rings else 2)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU of a node, connected to its other GPUs by NVLink and to other nodes by a network.

    Attributes:
      flops: peak dense bfloat16 operations per second.
      device_memory: bytes of its memory.
      bandwidth: bytes per second of the memory.
      nvlink: bytes per second, each way, to the other GPUs of the node.
      network: bytes per second, each way, to other nodes: one network card per GPU.
    """

    flops: float
    device_memory: float
    bandwidth: float
    nvlink: float
    network: float = 50e9  # 400 Gbit/s
    clock = 1.98e9  # no compiler estimates cycles
    is_timed = False  # convolutions reach 14 to 75% of the peak, depending on their channels

    @property
    def memory(self) -> float:
        """Bytes that programs may use: JAX's share of the memory, without the scratch space of cuDNN."""
        return memory_fraction() * self.device_memory - CUDNN_SCRATCH

    @property
    def room(self) -> str:
        """`memory` in words."""
        return (
            f"{self.memory / 1e9:.1f} GB: {100 * memory_fraction():.0f}% of {self.device_memory / 1e9:.1f} GB"
            f" (XLA_PYTHON_CLIENT_MEM_FRACTION) without {CUDNN_SCRATCH / 1e9:.0f} GB for cuDNN, an estimate"
        )

    def link(self, shape: Sequence[int]) -> float:
        """Bytes per second, each way, to the other GPUs of the node."""
        return self.nvlink


Chip = Tpu | Gpu
CUDNN_SCRATCH = 4e9  # the compiler does not count it; estimated, not measured


def memory_fraction() -> float:
    """The share of a GPU's memory that JAX takes when it starts."""
    return float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", 0.75))


GIB = 2**30
# A key matches a `jax.Device.device_kind` that contains the key as whole words.
TPUS = {
    "TPU v4": Tpu(275e12, 30.5 * GIB, 1228e9, 300e9, 3, 4, 1.05e9),
    "TPU v5 lite": Tpu(197e12, 15.75 * GIB, 819e9, 200e9, 2, 16, 1.5e9),
    "TPU v5": Tpu(459e12, 95.73 * GIB, 2765e9, 600e9, 3, 4, 1.75e9),
    "TPU v6 lite": Tpu(918e12, 31.24 * GIB, 1638e9, 400e9, 2, 16, 1.75e9),
}
TPUS |= {"TPU v5e": TPUS["TPU v5 lite"], "TPU v5p": TPUS["TPU v5"], "TPU v6e": TPUS["TPU v6 lite"]}
GPUS = {
    "A100-SXM4-80GB": Gpu(312e12, 85_100_068_864, 2_039_040_000_000, 300e9),
    "H100 80GB HBM3": Gpu(989e12, 84_942_979_072, 3_352_320_000_000, 450e9),
    "H200": Gpu(989e12, 150_109_880_320, 4_814_540_000_000, 450e9),
    "B200": Gpu(2250e12, 191_514_017_792, 7_672_000_000_000, 900e9),
}
GPU_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H100 PCIe": 756e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def chip(kind: str) -> Chip | None:
    """The data sheet of a `jax.Device.device_kind`; None if it is not listed here."""
    return _named(kind, TPUS | GPUS)


def peak_flops(kind: str) -> float:
    """Peak dense bfloat16 operations per second of a TPU or GPU; 0 if it is not listed here."""
    known = chip(kind)
    return known.flops if known else _named(kind, GPU_FLOPS) or 0.0


def _named(kind: str, known: Mapping[str, Any]) -> Any:
    """The value of the longest name that is part of `kind`; None if there is none.

    Only whole words count: an L40 is not an L4.
    """
    names = [name for name in known if re.search(rf"\b{re.escape(name)}\b", kind)]
    return known[max(names, key=len)] if names else None
