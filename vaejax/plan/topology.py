"""Topologies to plan for: TPU slices and NVIDIA GPUs, which may be absent, and CPU devices."""

import contextlib
import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the command's --help needs no JAX
    import jax

from vaejax.errors import InputError, one_line
from vaejax.plan import gpu_target
from vaejax.runtime import chips

ACCEPTED = (
    "v5e:16x16, v5p:4x4x4, v6e:8x8, h100:8, h200:8, b200:8, a100:8 and similar; 2xv5e:16x16 (two slices),"
    " h100:2x8 (two nodes); or cpu:N"
)
_TPU = re.compile(r"(?:([1-9]\d*)x)?((?:v5e|v5p|v6e):\d+x\d+(?:x\d+)?)")
_GPU = re.compile(r"(h100|h200|b200|a100):(?:([1-9]\d*)x)?([1-9]\d*)")


@dataclasses.dataclass(frozen=True)
class Topology:
    """The chips of a TPU slice, the GPUs of nodes, or CPU devices.

    Attributes:
      name: name on the command line, such as 'v5e:16x16', '2xv5e:16x16', 'h100:2x8' or 'cpu:8'.
      devices: JAX devices. Programs can be compiled for all of them, but only CPU devices can run programs.
      platform: 'tpu', 'cuda' or 'cpu'.
      chip: data sheet of one chip; None for CPUs, whose limits are unknown.
      shape: number of chips along each dimension of a slice; number of GPUs of a node; () for CPUs.
      compiler_options: options of XLA that compiling for absent devices needs.
    """

    name: str
    devices: "Sequence[jax.Device]"  # pyright: ignore[reportInvalidTypeForm]
    platform: str
    chip: chips.Chip | None
    shape: tuple[int, ...] = ()
    compiler_options: Mapping[str, bool | int] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, name: str) -> "Topology":
        """The topology with a name such as 'v5e:16x16' or 'cpu:8'. Call this before JAX opens any device.

        Raises:
          InputError: if there is no such topology, or if the compiler for its devices is missing.
        """
        import jax

        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
        cpus = re.fullmatch(r"cpu:([1-9]\d*)", name)
        if cpus:
            jax.config.update("jax_num_cpu_devices", int(cpus[1]))
            return cls(name, jax.devices()[: int(cpus[1])], "cpu", None)
        if gpus := _GPU.fullmatch(name):
            return cls._of_gpus(name, gpus[1], int(gpus[2] or 1), int(gpus[3]))
        if tpus := _TPU.fullmatch(name):
            return cls._of_tpus(name, int(tpus[1] or 1), tpus[2])
        raise InputError(f"--topology={name}; accepted: {ACCEPTED}")

    @classmethod
    def _of_tpus(cls, name: str, slices: int, slice_name: str) -> "Topology":
        _require("libtpu", "libtpu", name)
        # Without these variables, libtpu asks the metadata server which TPU this host has, complains if it
        # gets no answer, and locks the TPU.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
        devices = _described(name, platform="tpu", topology_name=slice_name, num_slices=slices)
        shape = tuple(map(int, slice_name.partition(":")[2].split("x")))
        return cls(name, devices, "tpu", chips.chip(devices[0].device_kind), shape)

    @classmethod
    def _of_gpus(cls, name: str, kind: str, nodes: int, gpus: int) -> "Topology":
        _require("jax_plugins.xla_cuda13", "'vaejax[plan-gpu]'", name)
        target = gpu_target.TARGETS[kind]
        devices = _described(name, platform="cuda", target_config=target.text(), topology=f"1x{nodes}x{gpus}")
        chip, options = chips.chip(target.name), gpu_target.COMPILER_OPTIONS
        return cls(name, devices, "cuda", chip, (gpus,), options)

    def slice_of(self, device: Any) -> int:
        """The slice of a TPU, or the node of a GPU."""
        return device.process_index if self.platform == "cuda" else getattr(device, "slice_index", 0)


def _require(module: str, package: str, name: str) -> None:
    """Raises an InputError if a compiler is not installed."""
    with contextlib.suppress(ModuleNotFoundError):
        if importlib.util.find_spec(module):
            return
    raise InputError(f"--topology={name}: {module} is missing; accepted: pip install {package}, or cpu:N")


def _described(name: str, **description: Any) -> "Sequence[jax.Device]":  # pyright: ignore[reportInvalidTypeForm]
    """The devices of a topology, which need not be attached."""
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(**description).devices  # pyright: ignore[reportArgumentType]
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"--topology={name}: no such topology ({one_line(error, 120)}); accepted: {ACCEPTED}"
        ) from error
