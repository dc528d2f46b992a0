"""Descriptions of NVIDIA GPUs with which XLA compiles for them where none is attached."""

import dataclasses
from collections.abc import Mapping

from vaejax.runtime.chips import GPUS

VERSION, CUDNN = "13.0.0", (9, 28, 1)  # of CUDA and its driver, and of cuDNN
COMPILER_OPTIONS: Mapping[str, bool | int] = {
    "xla_gpu_autotune_level": 0,  # measures nothing
    "xla_gpu_enable_triton_gemm": False,  # fails on small products without autotuning
}


@dataclasses.dataclass(frozen=True)
class Target:
    """An NVIDIA GPU as XLA describes it.

    Attributes:
      name: JAX's device kind; "NVIDIA " and a key of chips.GPUS, which has memory and bandwidth.
      cores: streaming multiprocessors.
      lanes: float32 units of a multiprocessor.
      cache: bytes of the level 2 cache.
      clock: GHz.
      shared: bytes of shared memory of a multiprocessor; a block can have 1024 fewer.
      capability: CUDA compute capability.
      accelerated: whether the architecture has instructions of its own, such as Hopper's wgmma.
    """

    name: str
    cores: int
    lanes: int
    cache: int
    clock: float
    shared: int
    capability: tuple[int, int]
    accelerated: bool

    def text(self) -> str:
        """The description in the text form of XLA's GpuTargetConfigProto."""
        sheet = GPUS[self.name.removeprefix("NVIDIA ")]
        extension = " feature_extension: ACCELERATED_FEATURES" if self.accelerated else ""
        cudnn = ".".join(map(str, CUDNN))
        return f"""
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
device_description_str: "{self.name}"
gpu_device_info {{
  name: "{self.name}"
  cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]}{extension} }}
  core_count: {self.cores}
  fpus_per_core: {self.lanes}
  clock_rate_ghz: {self.clock}
  device_memory_size: {int(sheet.device_memory)}
  memory_bandwidth: {int(sheet.bandwidth)}
  l2_cache_size: {self.cache}
  shared_memory_per_core: {self.shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {self.shared - 1024}
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  threads_per_warp: 32
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "{VERSION}"
  runtime_version: "{VERSION}"
  compile_time_toolkit_version: "{VERSION}"
  dnn_version: "{cudnn}"
}}
"""


_MIB = 2**20
_H100 = Target(
    name="NVIDIA H100 80GB HBM3",
    cores=132,
    lanes=128,
    cache=50 * _MIB,
    clock=1.98,
    shared=233472,
    capability=(9, 0),
    accelerated=True,
)
TARGETS = {
    "h100": _H100,
    "h200": dataclasses.replace(_H100, name="NVIDIA H200", cache=60 * _MIB),
    "b200": dataclasses.replace(
        _H100,
        name="NVIDIA B200",
        cores=148,
        cache=126 * _MIB,
        clock=1.965,
        capability=(10, 0),
    ),
    "a100": Target(
        name="NVIDIA A100-SXM4-80GB",
        cores=108,
        lanes=64,
        cache=40 * _MIB,
        clock=1.41,
        shared=167936,
        capability=(8, 0),
        accelerated=False,
    ),
}
