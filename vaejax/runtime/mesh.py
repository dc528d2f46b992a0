"""The device mesh and every sharding rule; no other file names an axis.

`data` splits the batch; `fsdp` splits the batch too, and parameters, optimiser state and EMA with it
(ZeRO-3); `space` splits the batch as well where it is large enough, and otherwise the height of frames and
activations, with halo exchange left to XLA.
"""

import bisect
import contextlib
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vaejax.config.schema import MeshConfig
from vaejax.errors import InputError
from vaejax.models.constraints import Placement, placing

AXES = ("data", "fsdp", "space")
BATCH = AXES[:2]  # what every batch is split by
SAMPLES = P(AXES)  # of B T H W C, and b t h w c: whole frames on every device
HEIGHT = P(BATCH, None, "space")  # where there are fewer samples than devices
SMALLEST_SHARDED = 2**14  # elements: below it a collective costs more than the memory it saves


def make(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices of all processes.

    Args:
      config: config.mesh with sizes data, fsdp and space; data = 0 takes the devices that the others leave.
      devices: others than those, of a topology that need not be there.

    Raises:
      InputError: if the sizes do not multiply to the number of devices.
    """
    count = len(devices) if devices is not None else jax.device_count()
    data = config.data or count // (config.fsdp * config.space)
    sizes = (data, config.fsdp, config.space)
    if math.prod(sizes) != count:
        raise InputError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x space {config.space} does not make the"
            f" {count} devices there are; accepted: sizes whose product is {count} (data=0: the rest)"
        )
    # An axis of the mesh may be a part of one of a pod's: space = 8 on 4 x 4 x 4 chips.
    grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    # Auto: under Explicit axes linen's partitioning and the kernel gradient of a 3D convolution fail.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def over_height(devices: Sequence[jax.Device]) -> Mesh:
    """A mesh of these devices along `space`: one clip that all of them share."""
    return Mesh(np.array(devices).reshape(1, 1, -1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_parts(mesh: Mesh) -> int:
    """How many parts any batch is split into."""
    return _parts(mesh, BATCH)


def height_parts(mesh: Mesh) -> int:
    """How many parts the height of frames is split into where there are few samples."""
    return mesh.shape["space"]


def frames_sharding(mesh: Mesh, batch: int) -> NamedSharding:
    """Of so many samples of frames or latents: whole where every device gets some, else split by height."""
    return NamedSharding(mesh, SAMPLES if batch % mesh.size == 0 else HEIGHT)


def placing_frames(mesh: Mesh) -> contextlib.AbstractContextManager:
    """While tracing inside, activations of models are split as their batch is."""

    def frames(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, frames_sharding(mesh, len(x)))

    def images(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(_dividing(mesh, len(x)))))

    def whole(kernel: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(kernel, replicated(mesh))

    def summed(f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        axes = _dividing(mesh, len(arrays[0]))

        def of_part(*parts):
            return jax.lax.psum(f(*parts), axes) if axes else f(*parts)

        return jax.shard_map(of_part, mesh=mesh, in_specs=P(axes), out_specs=P(), check_vma=False)(*arrays)

    return placing(Placement(frames, images, whole, summed))


def _dividing(mesh: Mesh, count: int) -> tuple[str, ...]:
    """The axes by which so many samples are split where none may be cut."""
    return next(axes for axes in (AXES, BATCH, ()) if count % _parts(mesh, axes) == 0)


def _parts(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def rows(mesh: Mesh, batch: int) -> list[int]:
    """The samples of a batch of which this process's devices hold a part, in order.

    Which these are depends on where the mesh puts a host's devices: on a pod they need not lie together.
    """
    shape = (batch, 1, mesh.shape["space"])
    parts = frames_sharding(mesh, batch).addressable_devices_indices_map(shape).values()
    return sorted({row for part in parts for row in range(batch)[part[0]]})


def replicated(mesh: Mesh) -> NamedSharding:
    """Of scalars and keys."""
    return NamedSharding(mesh, P())


def everywhere(mesh: Mesh, tree):
    """A tree of arrays whole on every device: sharded ones, or such as are the same in every process."""
    return jax.jit(_same, out_shardings=replicated(mesh))(tree)


def _same(tree):
    return tree


def state_shardings(mesh: Mesh, shapes):
    """A NamedSharding for every leaf of a tree of shapes: parameters, optimiser state, EMA alike."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["fsdp"])), shapes
    )


def placed(shapes, shardings):
    """A tree of shapes, each with its sharding."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def device_bytes(placed) -> int:
    """Bytes of a tree of placed shapes, or arrays, on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(placed))


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> P:
    """Splits the last dimension that `fsdp` divides (output channels first); small leaves are replicated."""
    if fsdp > 1 and math.prod(shape) >= SMALLEST_SHARDED:
        for dim in reversed(range(len(shape))):
            if shape[dim] % fsdp == 0:
                return P(*(None,) * dim, "fsdp")
    return P()


def shared(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """The global batch, (B, T, H, W, C), that every process holds whole."""
    return global_frames(mesh, batch, range(len(batch)), len(batch))


def global_frames(mesh: Mesh, frames: np.ndarray, held: Sequence[int], batch: int) -> jax.Array:
    """The global batch, (B, T, H, W, C).

    Args:
      mesh: of all processes.
      frames: (B / processes, T, H, W, C), what this process holds of it.
      held: the place of each in the batch, `rows` at least, in order.
      batch: B.
    """

    def part(index):
        first = bisect.bisect_left(held, index[0].indices(batch)[0])
        return frames[first : first + len(range(batch)[index[0]]), *index[1:]]

    return jax.make_array_from_callback((batch, *frames.shape[1:]), frames_sharding(mesh, batch), part)
