"""The convolution primitive against PyTorch, a direct computation and XLA's own convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from ml_collections import ConfigDict
from scipy import ndimage, signal

from vaejax.models import conv
from vaejax.models.constraints import place
from vaejax.models.conv import convolve, convolve_doubled
from vaejax.plan import hlo
from vaejax.runtime import mesh as sharding

# Shape of x, kernel, strides: the general path, both parities of T, the image path, patches, strides, many
# channels, and frames of several bands.
CASES = [
    ((2, 3, 6, 6, 3), (3, 3, 3), (1, 1, 1)),
    ((2, 6, 6, 5, 3), (3, 3, 3), (1, 1, 1)),
    ((1, 7, 4, 6, 3), (3, 3, 3), (1, 1, 1)),
    ((2, 4, 5, 6, 3), (2, 5, 1), (1, 1, 1)),
    ((3, 1, 6, 6, 3), (1, 3, 3), (1, 1, 1)),
    ((2, 3, 4, 4, 3), (1, 1, 1), (1, 1, 1)),
    ((2, 6, 4, 8, 3), (2, 2, 2), (2, 2, 2)),
    ((2, 5, 4, 8, 3), (2, 1, 1), (2, 1, 1)),
    ((2, 3, 4, 4, 3), (1, 2, 2), (1, 2, 2)),
    ((2, 5, 6, 8, 3), (3, 4, 4), (2, 2, 2)),
    ((2, 2, 6, 8, 3), (1, 4, 4), (1, 2, 2)),
    ((2, 3, 6, 8, 16), (1, 4, 4), (1, 2, 2)),
    ((1, 2, 9, 150, 2), (1, 3, 3), (1, 1, 1)),
]
FEATURES = 4


@pytest.fixture(params=["_cpu", "_as_channels"])
def path(request, monkeypatch):
    """The implementation of CPUs, then that of GPUs and TPUs."""
    monkeypatch.setitem(conv.PLATFORMS, "cpu", getattr(conv, request.param))


def arrays(shape, size, features=FEATURES):
    """Frames and a kernel, from a seed."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    kernel = rng.standard_normal((*size, shape[-1], features)).astype(np.float32)
    return x, kernel / np.sqrt(np.prod(kernel.shape[:4])).astype(np.float32)


def directly(x, kernel, strides):
    """The definition, channel pair by channel pair, in float64."""
    (b, t, *_, c), size = x.shape, kernel.shape[:3]
    y = np.zeros((*x.shape[:4], FEATURES))
    # SciPy puts a kernel of even size one place to the left of where a valid window starts.
    offsets = [-1 if k == s and k % 2 == 0 else 0 for k, s in zip(size, strides, strict=True)]
    # A window of 4 at stride 2 starts 1 place before its output, SciPy's 2.
    offsets = [-1 if (k, s) == (4, 2) else o for k, s, o in zip(size, strides, offsets, strict=True)]
    for n in range(b):
        for i in range(c):
            for j in range(FEATURES):
                y[n, ..., j] += ndimage.correlate(
                    x[n, ..., i].astype(float),
                    kernel[..., i, j].astype(float),
                    mode="constant",
                    origin=offsets,
                )
    start = size[0] // 2 + offsets[0]
    frames = y[:, start : start + t - size[0] + 1]
    return frames[:, :: strides[0], :: strides[1], :: strides[2]]


def with_gradients(f, x, kernel, dy):
    """f(x, kernel) and both its gradients for the cotangent dy, compiled."""

    def run(x, kernel, dy):
        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(dy)

    return [np.asarray(a.astype(jnp.float32)) for a in jax.jit(run)(x, kernel, dy)]


@pytest.mark.parametrize(
    ("shape", "size", "strides"),
    [*CASES, ((1, 5, 7, 9, 3), (3, 4, 4), (2, 2, 2)), ((1, 2, 7, 9, 3), (1, 4, 4), (1, 2, 2))],
)
def test_frames_and_blocks_of_pixels_as_channels_are_the_3d_convolution_of_xla(shape, size, strides):
    """Values and gradients; strides that do not divide the frame leave the same pixels out."""
    x, kernel = arrays(shape, size)
    for same in (True, False):
        ours = functools.partial(conv.convolve, strides=strides, same=same)
        expected = functools.partial(native, strides=strides, same=same)
        dy = np.cos(np.asarray(expected(x, kernel)))
        found, wanted = (with_gradients(f, x, kernel, dy) for f in (ours, expected))
        for a, b in zip(found, wanted, strict=True):
            close(a, b, 2e-6)


def native(x, kernel, strides, same=True):
    """XLA's convolution of odd kernels at stride 1, and of patches."""
    surplus = [(k - s) * same for k, s in zip(kernel.shape[1:3], strides[1:], strict=True)]
    pads = [(n // 2, (n + 1) // 2) for n in surplus]
    return jax.lax.conv_general_dilated(
        x, kernel, strides, [(0, 0), *pads], dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


def close(actual, desired, tolerance):
    """Compares with an error relative to the largest element, which is what a sum of products can keep."""
    np.testing.assert_allclose(actual, desired, rtol=0, atol=tolerance * np.abs(desired).max())


@pytest.mark.parametrize(("shape", "size", "strides"), CASES)
@pytest.mark.usefixtures("path")
def test_values_are_the_definition(shape, size, strides):
    x, kernel = arrays(shape, size)
    close(convolve(x, kernel, strides), directly(x, kernel, strides), 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 2e-6), pytest.param("bfloat16", 1e-2, marks=pytest.mark.variants)],
)
@pytest.mark.parametrize(("shape", "size", "strides"), CASES)
@pytest.mark.usefixtures("path")
def test_values_and_gradients_are_pytorch_s(shape, size, strides, dtype, tolerance):
    torch = pytest.importorskip("torch", reason="torch is not in the test extra")
    x, kernel = (jnp.asarray(a, dtype) for a in arrays(shape, size))
    tx, tk = (torch.tensor(np.asarray(a.astype(jnp.float32)), requires_grad=True) for a in (x, kernel))
    padding = [0, *((k - s + 1) // 2 for k, s in zip(size[1:], strides[1:], strict=True))]
    ty = torch.nn.functional.conv3d(
        tx.permute(0, 4, 1, 2, 3), tk.permute(4, 3, 0, 1, 2), stride=strides, padding=padding
    ).permute(0, 2, 3, 4, 1)
    dy = jnp.asarray(np.random.default_rng(1).standard_normal(ty.shape), dtype)
    ty.backward(torch.tensor(np.asarray(dy.astype(jnp.float32))))
    ours = with_gradients(functools.partial(convolve, strides=strides), x, kernel, dy)
    for actual, desired in zip(ours, (ty.detach(), tx.grad, tk.grad), strict=True):
        close(actual, desired.numpy(), tolerance)


@pytest.mark.parametrize("shape", [(2, 5, 9, 11, 3), (1, 3, 8, 8, 2), (1, 3, 8, 9, 17)])
@pytest.mark.parametrize(
    ("size", "strides"), [((3, 4, 4), (2, 2, 2)), ((1, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 2, 2))]
)
@pytest.mark.usefixtures("path")
def test_without_padding_values_and_gradients_are_those_of_scipy_and_xla(shape, size, strides):
    x, kernel = arrays(shape, size)
    ours = functools.partial(convolve, strides=strides, same=False)
    whole = signal.correlate(x[0, ..., 0].astype(float), kernel[..., 0, 0].astype(float), mode="valid")
    places = tuple(slice(None, None, s) for s in strides)
    only = np.zeros_like(kernel)
    only[..., 0, 0] = kernel[..., 0, 0]
    close(ours(x, only)[0, ..., 0], whole[places], 1e-6)
    dy = np.random.default_rng(1).standard_normal(ours(x, kernel).shape).astype(np.float32)

    def xla(x, kernel):
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=numbers)

    for a, b in zip(with_gradients(ours, x, kernel, dy), with_gradients(xla, x, kernel, dy), strict=True):
        close(a, b, 2e-6)


@pytest.mark.usefixtures("path")
def test_result_keeps_the_dtype():
    x, kernel = (jnp.asarray(a, jnp.bfloat16) for a in arrays((1, 4, 4, 4, 3), (3, 3, 3)))
    assert jax.jit(convolve)(x, kernel).dtype == jnp.bfloat16
    assert jax.jit(jax.grad(lambda k: convolve(x, k).sum()))(kernel).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("shape", "size", "strides", "lead"),
    [
        ((2, 5, 6, 5, 3), (3, 3, 3), (1, 1, 1), 2),
        ((1, 4, 6, 6, 3), (3, 3, 3), (1, 1, 1), 2),
        ((1, 2, 4, 4, 3), (3, 1, 1), (1, 1, 1), 2),
        ((1, 1, 4, 4, 3), (3, 3, 3), (1, 1, 1), 2),
        ((1, 4, 4, 4, 3), (3, 3, 3), (1, 1, 1), 1),
        ((1, 3, 6, 4, 3), (2, 4, 4), (1, 2, 2), 1),
        ((1, 3, 4, 4, 3), (2, 2, 2), (2, 2, 2), 1),
    ],
)
@pytest.mark.parametrize("implementation", ["_cpu", "_as_channels"])
def test_leading_zeros_are_frames_of_zeros(shape, size, strides, lead, implementation, monkeypatch):
    monkeypatch.setitem(conv.PLATFORMS, "cpu", getattr(conv, implementation))
    x, kernel = arrays(shape, size)
    ours = functools.partial(convolve, strides=strides, lead=lead)

    def expected(x, kernel):
        return native(jnp.pad(x, ((0, 0), (lead, 0), (0, 0), (0, 0), (0, 0))), kernel, strides)

    dy = np.cos(np.asarray(expected(x, kernel)))
    for a, b in zip(
        with_gradients(ours, x, kernel, dy), with_gradients(expected, x, kernel, dy), strict=True
    ):
        close(a, b, 2e-6)


@pytest.mark.parametrize(("size", "strides"), [((3, 3, 3), (1, 1, 1)), ((2, 2, 2), (2, 2, 2))])
@pytest.mark.parametrize("split", [0, 1, 2, 4, 6])
@pytest.mark.usefixtures("path")
def test_frames_before_a_clip_count_as_part_of_it(size, strides, split):
    x, kernel = arrays((2, 6, 6, 4, 3), size)

    def in_parts(x, kernel):
        return convolve(x[:, split:], kernel, strides, before=x[:, :split])

    expected = functools.partial(native, strides=strides)
    dy = np.cos(np.asarray(expected(x, kernel)))
    found, wanted = (with_gradients(f, x, kernel, dy) for f in (in_parts, expected))
    for a, b in zip(found, wanted, strict=True):
        close(a, b, 2e-6)


@pytest.mark.parametrize("implementation", ["_cpu", "_as_channels"])
def test_a_convolution_of_doubled_frames_is_that_of_pytorch(implementation, monkeypatch):
    torch = pytest.importorskip("torch", reason="torch is not in the test extra")
    monkeypatch.setitem(conv.PLATFORMS, "cpu", getattr(conv, implementation))
    x, kernel = arrays((2, 3, 5, 4, 3), (1, 3, 3))
    tx, tk = (torch.tensor(a, requires_grad=True) for a in (x, kernel))
    doubled = torch.nn.functional.interpolate(tx.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2)
    ty = torch.nn.functional.conv2d(doubled, tk[0].permute(3, 2, 0, 1), padding=1)
    ty = ty.permute(0, 2, 3, 1).reshape(2, 3, 10, 8, FEATURES)
    dy = np.cos(np.arange(ty.numel(), dtype=np.float32)).reshape(ty.shape)
    ty.backward(torch.tensor(dy))
    shortcut = with_gradients(convolve_doubled, x, kernel, dy)
    with conv.general_path():
        plain = with_gradients(lambda *args: convolve_doubled(*args), x, kernel, dy)
    for found in (shortcut, plain):
        for a, b in zip(found, (ty.detach(), tx.grad, tk.grad), strict=True):
            close(a, b.numpy(), 2e-6)


@pytest.mark.usefixtures("path")
def test_an_image_is_a_static_video():
    x, kernel = arrays((2, 1, 16, 16, 32), (3, 3, 3))
    image = convolve(x, kernel.sum(axis=0, keepdims=True))
    video = convolve(np.repeat(x, 7, axis=1), kernel)
    for frame in range(video.shape[1]):
        close(video[:, frame : frame + 1], image, 2e-6)


@pytest.mark.usefixtures("path")
def test_second_derivatives_and_remat():
    x, kernel = arrays((1, 5, 6, 6, 3), (3, 3, 3))

    def penalty(f):
        def loss(x, kernel):
            return jnp.sum(jnp.sin(f(x, kernel)))

        return lambda x, kernel: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(x, kernel))

    ours = jax.jit(jax.grad(penalty(jax.checkpoint(convolve)), (0, 1)))(x, kernel)
    theirs = jax.jit(jax.grad(penalty(functools.partial(native, strides=(1, 1, 1))), (0, 1)))(x, kernel)
    for actual, desired in zip(ours, theirs, strict=True):
        close(actual, desired, 1e-5)


@pytest.mark.usefixtures("path")
def test_results_are_the_same_bits_every_run():
    x, kernel = arrays((2, 7, 16, 16, 32), (3, 3, 3))
    dy = np.asarray(convolve(x, kernel))
    first, *others = (with_gradients(convolve, x, kernel, dy) for _ in range(3))
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_tpu_and_gpu_programs_hold_2d_convolutions(as_the_command):
    x, kernel = arrays((2, 7, 8, 8, 16), (3, 3, 3))
    loss = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2), (0, 1)))
    lowered = {p: loss.trace(x, kernel).lower(lowering_platforms=(p,)) for p in ("tpu", "cuda", "cpu")}

    def convolutions(platform):
        lines = [line for line in lowered[platform].as_text().splitlines() if "stablehlo.convolution" in line]
        return sorted(line.rsplit("-> tensor<", 1)[1] for line in lines)

    for platform in ("tpu", "cuda"):
        assert convolutions(platform) == ["10x8x8x48xf32>", "10x8x8x4xf32>", "3x3x48x4xf32>"]
    assert "stablehlo.while" not in lowered["tpu"].as_text()
    assert "conditional" not in lowered["cpu"].compile().as_text()  # one platform, one branch


@pytest.mark.usefixtures("path")
def test_sharding_changes_nothing():
    """Values and gradients on eight devices, batch, kernel and height shared out among them, and on one."""
    mesh = sharding.make_mesh(ConfigDict({"data": 2, "fsdp": 2, "space": 2}))
    frames = NamedSharding(mesh, sharding.HEIGHT)
    for shape, size, features in (
        ((4, 7, 8, 8, 6), (3, 3, 3), 4),
        ((4, 1, 8, 8, 6), (1, 3, 3), 4),
        ((4, 1, 8, 4, 32), (1, 3, 3), 32),
    ):
        x, kernel = arrays(shape, size, features)
        dy = np.cos(np.asarray(convolve(x, kernel)))
        one = with_gradients(convolve, x, kernel, dy)
        shares = NamedSharding(mesh, sharding.P(None, None, None, None, "fsdp"))
        with sharding.placing_frames(mesh):
            parts = (jax.device_put(a, there) for a, there in ((x, frames), (kernel, shares), (dy, frames)))
            eight = with_gradients(lambda x, k: place(convolve(place(x), k, in_strips=True)), *parts)
        for actual, desired in zip(eight, one, strict=True):
            close(actual, desired, 2e-6)


def test_devices_that_share_the_height_exchange_rows_of_frames():
    """Two rows of each frame, not of the three views of a frame that the 2D convolution takes."""
    mesh = sharding.make_mesh(ConfigDict({"data": 1, "fsdp": 1, "space": 8}))
    frames, whole = NamedSharding(mesh, sharding.HEIGHT), NamedSharding(mesh, sharding.P())
    x = jax.ShapeDtypeStruct((1, 9, 16, 8, 6), jnp.float32, sharding=frames)
    kernel = jax.ShapeDtypeStruct((3, 3, 3, 6, 4), jnp.float32, sharding=whole)
    with sharding.placing_frames(mesh):
        program = jax.jit(lambda x, k: place(convolve(x, k, in_strips=True))).lower(x, kernel).compile()
    assert hlo.traffic(program.as_text()).collectives == {"collective-permute": 2 * 9 * 8 * 6 * 4}
