"""Topologies to plan for: TPU slices, which may be absent, and CPU devices."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command's --help needs no JAX
    import jax

from vaejax.errors import InputError, one_line
from vaejax.runtime import chips

ACCEPTED = "v5e:16x16, v5p:4x4x4, v6e:8x8 and similar, or cpu:N"
_TPU = re.compile(r"(v5e|v5p|v6e):(\d+)x(\d+)(x\d+)?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """The chips of a TPU slice, or CPU devices.

    Attributes:
      name: name on the command line, such as 'v5e:16x16' or 'cpu:8'.
      devices: JAX devices. Programs can be compiled for all of them, but only CPU devices can run programs.
      platform: 'tpu' or 'cpu'.
      chip: data sheet of one chip; None for CPUs, whose limits are unknown.
      shape: number of chips along each dimension of the slice; () for CPUs.
    """

    name: str
    devices: "Sequence[jax.Device]"  # pyright: ignore[reportInvalidTypeForm]
    platform: str
    chip: chips.Chip | None
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, name: str) -> "Topology":
        """The topology with a name such as 'v5e:16x16' or 'cpu:8'. Call this before JAX opens any device.

        Raises:
          InputError: if there is no such topology, or if libtpu, the compiler for TPUs, is missing.
        """
        import jax
        from jax.experimental import topologies

        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
        cpus = re.fullmatch(r"cpu:([1-9]\d*)", name)
        if cpus:
            jax.config.update("jax_num_cpu_devices", int(cpus[1]))
            return cls(name, jax.devices()[: int(cpus[1])], "cpu", None)
        if not _TPU.fullmatch(name):
            raise InputError(f"--topology={name}; accepted: {ACCEPTED}")
        if not importlib.util.find_spec("libtpu"):
            raise InputError(f"--topology={name}: libtpu is missing; accepted: pip install libtpu, or cpu:N")
        # Without these variables, libtpu asks the metadata server which TPU this host has, complains if it
        # gets no answer, and locks the TPU.
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
        try:
            devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
        except (RuntimeError, ValueError, NotImplementedError) as error:
            raise InputError(
                f"--topology={name}: no such slice ({one_line(error, 120)}); accepted: {ACCEPTED}"
            ) from error
        shape = tuple(map(int, name.partition(":")[2].split("x")))
        return cls(name, devices, "tpu", chips.chip(devices[0].device_kind), shape)
