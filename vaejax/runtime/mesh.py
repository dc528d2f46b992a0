"""The device mesh and every sharding rule. No other file creates a sharding from mesh axes.

The mesh has three axes. `data` splits the batch. `fsdp` splits the batch, parameters, optimizer state and EMA
(ZeRO-3). `space` splits the batch too if the batch size is a multiple of the number of devices. Otherwise
`space` splits the height of frames and activations, and convolutions exchange rows with neighboring parts.
"""

import bisect
import collections
import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vaejax.config.schema import MeshConfig
from vaejax.errors import InputError
from vaejax.models.constraints import Placement, Strips, placing

AXES = ("data", "fsdp", "space")
BATCH = AXES[:2]  # the axes that split every batch
# The two shardings of frames and latents (B, T, H, W, C). SAMPLES puts whole samples on every device. HEIGHT,
# for batch sizes that are not a multiple of the number of devices, also splits the height of each sample.
SAMPLES = P(AXES)
HEIGHT = P(BATCH, None, "space")
# Arrays with fewer elements are replicated: sharding them saves too little memory to justify communication.
SMALLEST_SHARDED = 2**14


def make_mesh(
    config: MeshConfig,
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm]
    slice_of: Callable[[Any], int] = lambda device: getattr(device, "slice_index", 0),
) -> Mesh:
    """Creates the mesh of all devices of all processes.

    Links between TPU slices, or between nodes of GPUs, are slow. `data` crosses them, `fsdp` only if `data`
    has too few parts, `space` never.

    Args:
      config: sizes of the axes; data = 0 takes the devices that the other axes leave.
      devices: devices to use instead of the attached ones, e.g. those of a described TPU topology.
      slice_of: function that returns the slice or the node of a device.

    Raises:
      InputError: if the sizes do not multiply to the number of devices, or do not suit the slices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    data = config.data or count // (config.fsdp * config.space)
    sizes = (data, config.fsdp, config.space)
    if math.prod(sizes) != count:
        raise InputError(
            f"mesh: data {config.data} x fsdp {config.fsdp} x space {config.space} does not match the"
            f" {count} devices; accepted: sizes whose product is {count} (mesh.data = 0 takes the rest)"
        )
    slices: dict[int, list] = collections.defaultdict(list)
    for device in devices:
        slices[slice_of(device)].append(device)
    outer = _slices_along_axes(sizes, [len(one) for one in slices.values()])
    inner = tuple(size // parts for size, parts in zip(sizes, outer, strict=True))
    # Two mesh axes may share a physical axis of the pod, e.g. if space = 8 on 4 x 4 x 4 chips.
    blocks = np.empty((*outer, *inner), object)
    for index, one in zip(np.ndindex(*outer), (slices[i] for i in sorted(slices)), strict=True):
        blocks[index] = mesh_utils.create_device_mesh(inner, one, allow_split_physical_axes=True)
    grid = blocks.transpose(0, 3, 1, 4, 2, 5).reshape(sizes)
    # Auto, because with Explicit axes Linen's partitioning and the kernel gradient of 3D convolutions fail.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _slices_along_axes(sizes: tuple[int, int, int], devices: Sequence[int]) -> tuple[int, int, int]:
    """The number of slices along each mesh axis, given the number of devices of each slice."""
    if len(set(devices)) > 1:
        counts = ", ".join(map(str, sorted(set(devices))))
        raise InputError(f"mesh: nodes or slices have different numbers of devices: {counts}; accepted: one")
    data, fsdp, _ = sizes
    along_data = math.gcd(data, len(devices))
    along_fsdp = len(devices) // along_data
    if fsdp % along_fsdp:
        raise InputError(
            f"mesh: data {data} x fsdp {fsdp} on {len(devices)} nodes or slices; accepted: a product that is"
            f" a multiple of {len(devices)}, because mesh.space must not cross slow links"
        )
    return along_data, along_fsdp, 1


def over_height(devices: Sequence[jax.Device]) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]
    """A mesh that splits a batch by samples if the number of `devices` divides its size, else by height."""
    return Mesh(np.array(devices).reshape(1, 1, -1), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_parts(mesh: Mesh) -> int:
    """The number of parts that every batch is split into, even one smaller than the number of devices."""
    return _parts(mesh, BATCH)


def height_parts(mesh: Mesh) -> int:
    """The number of parts that frame heights are split into if the device count does not divide the batch."""
    return mesh.shape["space"]


def frames_sharding(mesh: Mesh, at_once: int) -> NamedSharding:
    """The sharding of frames or latents (B, T, H, W, C).

    If their number is a multiple of the number of devices, each device holds whole samples. Otherwise the
    axis `space` splits their height.

    Args:
      mesh: device mesh.
      at_once: number of samples that are computed at once: B, or fewer for a batch in pieces.
    """
    return NamedSharding(mesh, SAMPLES if at_once % mesh.size == 0 else HEIGHT)


def placing_frames(mesh: Mesh) -> contextlib.AbstractContextManager:
    """A context in which traced models shard activations as `frames_sharding` says and replicate kernels."""

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

    def strips(x: jax.Array, rows: int) -> Strips | None:
        parts = height_parts(mesh)
        shares = parts > 1 and frames_sharding(mesh, len(x)).spec == HEIGHT
        height, rest = divmod(x.shape[2], parts)
        return _strips(mesh) if shares and height >= rows and not rest else None

    on_tpu = mesh.devices.flat[0].platform == "tpu"
    return placing(
        Placement(frames=frames, images=images, whole=whole, summed=summed, strips=strips, on_tpu=on_tpu)
    )


def _strips(mesh: Mesh) -> Strips:
    """Strips of frames whose height the axis `space` splits; see `constraints.Strips`."""
    parts = height_parts(mesh)

    def with_neighbors(x: jax.Array, above: int, below: int) -> jax.Array:
        down, up = [(i, i + 1) for i in range(parts - 1)], [(i + 1, i) for i in range(parts - 1)]
        rows = [x]
        if above:
            rows.insert(0, jax.lax.ppermute(x[:, :, -above:], "space", down))
        if below:
            rows.append(jax.lax.ppermute(x[:, :, :below], "space", up))
        return jnp.concatenate(rows, axis=2)

    def split(x: jax.Array, above: int, below: int) -> jax.Array:
        exchange = functools.partial(with_neighbors, above=above, below=below)
        return jax.shard_map(exchange, mesh=mesh, in_specs=HEIGHT, out_specs=SAMPLES, check_vma=False)(x)

    def join(x: jax.Array) -> jax.Array:
        return jax.shard_map(_identity, mesh=mesh, in_specs=SAMPLES, out_specs=HEIGHT, check_vma=False)(x)

    return Strips(split, join)


def _dividing(mesh: Mesh, count: int) -> tuple[str, ...]:
    """The mesh axes that split `count` images into equal parts: AXES if possible, else BATCH, else none."""
    return next(axes for axes in (AXES, BATCH, ()) if count % _parts(mesh, axes) == 0)


def _parts(mesh: Mesh, axes: Sequence[str]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def local_rows(mesh: Mesh, batch: int, at_once: int = 0) -> list[int]:
    """The ascending indices of the samples of a batch that this process's devices hold at least in part.

    They depend on the positions of these devices in the mesh; on a pod they need not be contiguous.

    Args:
      mesh: mesh of the devices of all processes.
      batch: number of samples B in the batch.
      at_once: see `frames_sharding`; 0 stands for B.
    """
    shape = (batch, 1, mesh.shape["space"])
    parts = frames_sharding(mesh, at_once or batch).addressable_devices_indices_map(shape).values()
    return sorted({row for part in parts if part for row in range(batch)[part[0]]})


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Copies a tree of arrays to every device; each array must be sharded, or equal on all processes."""
    return jax.jit(_identity, out_shardings=replicated(mesh))(tree)


def _identity(tree: Any) -> Any:
    return tree


def state_shardings(mesh: Mesh, shapes: Any) -> Any:
    """The sharding of each array of a train state, given a tree of their shapes."""
    return jax.tree.map(
        lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["fsdp"])), shapes
    )


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of shapes with the shardings of another tree."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def device_bytes(tree: Any) -> int:
    """The bytes on one device of a tree of arrays, or of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> P:
    """Splits the last dimension that `fsdp` divides, usually output channels; replicates small arrays."""
    if fsdp > 1 and math.prod(shape) >= SMALLEST_SHARDED:
        for dim in reversed(range(len(shape))):
            if shape[dim] % fsdp == 0:
                return P(*(None,) * dim, "fsdp")
    return P()


def shard_batch(mesh: Mesh, batch: np.ndarray) -> jax.Array:
    """Returns the sharded array of a batch (B, T, H, W, C) that every process holds whole."""
    return global_frames(mesh, batch, range(len(batch)), len(batch))


def global_frames(
    mesh: Mesh, frames: np.ndarray, held: Sequence[int], batch: int, at_once: int = 0
) -> jax.Array:
    """Returns the sharded array of a batch (B, T, H, W, C) from the samples that each process holds.

    Args:
      mesh: mesh of the devices of all processes.
      frames: samples (n, T, H, W, C) of this process.
      held: index of each sample in the batch, ascending; must include `local_rows`.
      batch: number of samples B in the batch.
      at_once: see `frames_sharding`; 0 stands for B.
    """

    def part(index):
        first = bisect.bisect_left(held, index[0].indices(batch)[0])
        return frames[first : first + len(range(batch)[index[0]]), *index[1:]]

    place = frames_sharding(mesh, at_once or batch)
    return jax.make_array_from_callback((batch, *frames.shape[1:]), place, part)
