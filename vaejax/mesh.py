"""The device mesh and every sharding rule; no other file names an axis.

`data` splits the batch; `fsdp` splits the batch too, and parameters, optimiser state and EMA with it
(ZeRO-3); `space` splits the height of frames and activations, with halo exchange left to XLA.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vaejax.errors import InputError

AXES = ("data", "fsdp", "space")
FRAMES = P(("data", "fsdp"), None, "space", None, None)  # B T H W C, and b t h w c
SMALLEST_SHARDED = 2**14  # elements: below it a collective costs more than the memory it saves


def make(config: ConfigDict) -> Mesh:
    """The mesh of all devices of all processes.

    Args:
      config: config.mesh with sizes data, fsdp and space; data = 0 takes the devices that the others leave.

    Raises:
      InputError: if the sizes do not multiply to the number of devices.
    """
    devices = jax.device_count()
    data = config.data or devices // (config.fsdp * config.space)
    sizes = (data, config.fsdp, config.space)
    if math.prod(sizes) != devices:
        raise InputError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x space {config.space} does not make the"
            f" {devices} devices there are; accepted: sizes whose product is {devices} (data=0: the rest)"
        )
    if jax.local_device_count() % config.space:
        raise InputError(
            f"mesh.space = {config.space}; accepted: divisors of {jax.local_device_count()}, the devices of"
            " one process: the height of a frame is not split over hosts"
        )
    # Auto: under Explicit axes linen's partitioning and the kernel gradient of a 3D convolution fail.
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def over_height(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of these devices along `space`: one clip that all of them share."""
    return jax.make_mesh((1, 1, len(devices)), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def batch_shards(mesh: Mesh) -> int:
    """How many parts a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def frames_sharding(mesh: Mesh) -> NamedSharding:
    """Of a batch of frames or latents."""
    return NamedSharding(mesh, FRAMES)


def replicated(mesh: Mesh) -> NamedSharding:
    """Of scalars and keys."""
    return NamedSharding(mesh, P())


def state_shardings(mesh: Mesh, shapes):
    """A NamedSharding for every leaf of a tree of shapes: parameters, optimiser state, EMA alike."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["fsdp"])), shapes
    )


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> P:
    """Splits the last dimension that `fsdp` divides (output channels first); small leaves are replicated."""
    if fsdp > 1 and math.prod(shape) >= SMALLEST_SHARDED:
        for dim in reversed(range(len(shape))):
            if shape[dim] % fsdp == 0:
                return P(*(None,) * dim, "fsdp")
    return P()


def shared(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """The global batch, (B, T, H, W, C), that every process holds whole."""
    return jax.make_array_from_callback(batch.shape, frames_sharding(mesh), lambda part: batch[part])


def global_frames(mesh: Mesh, frames: np.ndarray) -> jax.Array:
    """The global batch of which this process holds `frames`, (B / processes, T, H, W, C)."""
    return jax.make_array_from_process_local_data(frames_sharding(mesh), frames)
