"""The devices of a topology that need not be there: TPU slices, and so many CPU devices."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from vaejax.errors import InputError, one_line
from vaejax.runtime import chips as hardware

ACCEPTED = "v5e:16x16, v5p:4x4x4, v6e:8x8 and the like, or cpu:N"
_TPU = re.compile(r"(v5e|v5p|v6e):(\d+)x(\d+)(x\d+)?")


@dataclasses.dataclass(frozen=True)
class Topology:
    """So many chips of one kind.

    Attributes:
      name: as it was asked for.
      devices: of JAX; programs can be compiled for them, not run, unless they are CPU devices.
      platform: 'tpu' or 'cpu'.
      chip: None for a CPU, whose limits are not known.
      shape: of the slice, chips in each dimension.
    """

    name: str
    devices: Sequence[jax.Device]
    platform: str
    chip: hardware.Chip | None
    shape: tuple[int, ...] = ()


def of(name: str) -> Topology:
    """The topology 'v5e:16x16' or 'cpu:8'; asked for before JAX has seen any device.

    Raises:
      InputError: where there is no such topology, or libtpu, which compiles for TPUs, is missing.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    cpus = re.fullmatch(r"cpu:([1-9]\d*)", name)
    if cpus:
        jax.config.update("jax_num_cpu_devices", int(cpus[1]))
        return Topology(name, jax.devices()[: int(cpus[1])], "cpu", None)
    if not _TPU.fullmatch(name):
        raise InputError(f"--topology={name}; accepted: {ACCEPTED}")
    if not importlib.util.find_spec("libtpu"):
        raise InputError(f"--topology={name}: libtpu is missing; accepted: pip install libtpu, or cpu:N")
    # Else libtpu asks this machine's metadata which TPU it has, complains where it has none, and locks it.
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-1", "TPU_WORKER_HOSTNAMES": "localhost"}
    try:
        devices = topologies.get_topology_desc(platform="tpu", topology_name=name).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"--topology={name}: no such slice ({one_line(error, 120)})") from error
    shape = tuple(map(int, name.partition(":")[2].split("x")))
    return Topology(name, devices, "tpu", hardware.chip(devices[0].device_kind), shape)
