"""Convolutions of clips: a fast one per platform, and a causal one that can continue a stream in chunks."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vaejax.models import conv_cpu
from vaejax.models.constraints import strips, whole
from vaejax.models.conv_cpu import Pads, Triple
from vaejax.models.smc import modulate

LANES = 128  # TPUs pad channels to a multiple of this

_image_path = contextvars.ContextVar("image_path", default=True)


@contextlib.contextmanager
def general_path() -> Iterator[None]:
    """Inside the context, convolutions of images and of doubled frames take no shortcut, for comparison."""
    token = _image_path.set(False)
    try:
        yield
    finally:
        _image_path.reset(token)


def convolve(
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kt kh kw C features"],
    strides: Triple = (1, 1, 1),
    same: bool = True,
    lead: int = 0,
    before: Float[Array, "B T_before H W C"] | None = None,
    in_strips: bool = False,
) -> Float[Array, "B T_out H_out W_out features"]:
    """Convolves a clip, with padding in time only in front.

    Each platform has its own implementation of the same sums:

    - CPU: 2D convolutions and matrix products, in float32 or wider. On two cores, the gradients of a whole
      autoencoder take a third of the time of XLA's 3D convolution for videos, and half of it for images.
    - GPU, TPU and any other platform: one 2D convolution, with the frames that the kernel covers concatenated
      along channels.

    The platform is chosen when JAX lowers the program, so a program compiled for a TPU on a CPU host uses the
    TPU's version.

    Args:
      x: clip (B, T, H, W, C).
      kernel: kernel (kt, kh, kw, C, C').
      strides: strides (st, sh, sw).
      same: whether to pad height and width with zeros, by kernel size minus stride (not XLA's 'SAME').
        A single row or column of zeros goes below or to the right.
      lead: number of zero frames in front of the clip.
      before: frames (B, T', H, W, C) in front of the clip, instead of zeros. They count as part of it. This
        saves accelerators a copy of all frames.
      in_strips: whether the frames are placed by `constraints.place`. Devices that share their height then
        exchange rows of frames. XLA would exchange rows of all frames that the kernel covers, as channels.

    Returns:
      (B, 1 + (lead + T' + T - kt) // st, H', W', C'): H' = H // sh if `same`, else 1 + (H - kh) // sh; W'
      likewise.
    """
    before = x[:, :0] if before is None else before
    pads = padding(kernel.shape[:3], strides, same, lead)
    shared = strips(x, max(pads[1])) if in_strips and max(pads[1]) and strides[1] == 1 else None
    if shared:
        before, x = (shared.split(frames, *pads[1]) for frames in (before, x))
        return shared.join(_convolve(before, x, kernel, strides, (pads[0], (0, 0), pads[2])))
    return _convolve(before, x, kernel, strides, pads)


def padding(size: Sequence[int], strides: Triple, same: bool = True, lead: int = 0) -> Pads:
    """Returns the padding of `convolve` for a kernel of this size."""
    height, width = ((k - s) * same for k, s in zip(size[1:], strides[1:], strict=True))
    return (lead, 0), (height // 2, height - height // 2), (width // 2, width - width // 2)


def convolve_doubled(
    x: Float[Array, "B T H W C"], kernel: Float[Array, "1 3 3 C features"]
) -> Float[Array, "B T H_out W_out features"]:
    """Convolves frames whose height and width were doubled by copying pixels, and padded with zeros.

    Two or three of the kernel's rows, and of its columns, lie on copies of one row or column. Their sums are
    the four 2x2 kernels of this function, one for each pixel of an output block of 2x2: 4/9 of the work.

    Args:
      x: frames (B, T, H, W, C) before doubling.
      kernel: kernel (1, 3, 3, C, C'), cast to the dtype of x.

    Returns:
      (B, T, 2H, 2W, C').
    """
    if not _image_path.get():
        return convolve(jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3), kernel.astype(x.dtype))

    def halves(kernel, axis):
        """The kernels of the first and of the second row or column of a block, and their padding."""
        k0, k1, k2 = jnp.split(kernel, 3, axis)
        pairs = ((k0, k1 + k2), (1, 0)), ((k0 + k1, k2), (0, 1))
        return [(jnp.concatenate(pair, axis), pad) for pair, pad in pairs]

    parts: Any = [
        [
            _convolve(x[:, :0], x, k.astype(x.dtype), (1, 1, 1), ((0, 0), rows, columns))
            for k, columns in halves(half, 2)
        ]
        for half, rows in halves(kernel, 1)
    ]
    y = jnp.stack([jnp.stack(row, axis=4) for row in parts], axis=3)  # (B, T, H, 2, W, 2, C')
    b, t, h, _, w, *_ = y.shape
    return y.reshape(b, t, 2 * h, 2 * w, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _convolve(before: jax.Array, x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads) -> jax.Array:
    choices = {name: functools.partial(f, strides=strides, pads=pads) for name, f in PLATFORMS.items()}
    return jax.lax.platform_dependent(before, x, whole(kernel), **choices)


def _convolve_forward(before, x, kernel, strides, pads):
    return _convolve(before, x, kernel, strides, pads), (before, x, kernel)


def _convolve_backward(strides, pads, saved, dy):
    # Differentiating `platform_dependent` itself would store the residuals of all branches, so each branch
    # computes its own gradients.
    def gradients(f):
        f = functools.partial(f, strides=strides, pads=pads)
        return lambda before, x, kernel, dy: jax.vjp(f, before, x, kernel)[1](dy)

    choices = {name: gradients(f) for name, f in PLATFORMS.items()}
    before, x, kernel = saved
    return jax.lax.platform_dependent(before, x, whole(kernel), dy, **choices)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _cpu(before: jax.Array, x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads) -> jax.Array:
    """Computes the convolution by `conv_cpu.convolve`."""
    return conv_cpu.convolve(jnp.concatenate([before, x], axis=1), kernel, strides, pads)


def _as_channels(
    before: jax.Array, x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads
) -> jax.Array:
    """Computes the convolution as one 2D convolution, with the kernel's frames concatenated along channels.

    XLA's 3D convolutions with a kernel of three frames are slower. In bfloat16 on an H100, they and their
    gradients take 1.1 to 1.8 times as long. On a TPU v5e, libtpu estimates 1.4 times as many cycles, because
    frames leave tiles partly empty.

    A TPU also pads channels to 128, so an input of 3 channels would occupy 43 times its size. If there are
    fewer than 128 channels, and strides above 1 divide the height and width of the kernel, blocks of pixels
    as large as the strides move into the channels first.
    """
    before = jnp.pad(before, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    b, (kt, kh, kw, c, out) = x.shape[0], kernel.shape  # len(x) fails if an export leaves B open
    n = 1 + (before.shape[1] + x.shape[1] - kt) // strides[0]
    frames = [_frames_from(before, x, i, strides[0], n) for i in range(kt)]
    x = jnp.concatenate(frames, axis=-1).reshape(b * n, *x.shape[2:4], kt * c)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, out)
    steps, margins = strides[1:], pads[1:]
    if max(steps) > 1 and kt * c < LANES and kh % steps[0] == kw % steps[1] == 0:
        x = jnp.pad(x, ((0, 0), *margins, (0, 0)))
        x = _to_channels(
            x[:, : x.shape[1] // steps[0] * steps[0], : x.shape[2] // steps[1] * steps[1]], steps
        )
        kernel = _to_channels(kernel[None], steps)[0]
        steps, margins = (1, 1), ((0, 0), (0, 0))
    y = jax.lax.conv_general_dilated(x, kernel, steps, margins, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return y.reshape(b, n, *y.shape[1:])


def _frames_from(before: jax.Array, x: jax.Array, start: int, step: int, count: int) -> jax.Array:
    """Frames start, start + step, ... of the clip (before, x), without joining the two.

    The joined clip would be a copy. On a TPU it would also leave tiles partly empty, e.g. with 2 + 16 frames.
    """
    early = min(count, max(0, -((start - before.shape[1]) // step)))  # the frames that `before` has
    first = start + early * step - before.shape[1]
    late = x[:, first : first + (count - early) * step : step]
    return jnp.concatenate([before[:, start : start + early * step : step], late], axis=1)


def _to_channels(x: jax.Array, block: tuple[int, int]) -> jax.Array:
    """Rearranges (N, H, W, C, ...) to (N, H/sh, W/sw, sh·sw·C, ...), block = (sh, sw)."""
    (n, h, w, c, *rest), (sh, sw) = x.shape, block
    x = jnp.moveaxis(x.reshape(n, h // sh, sh, w // sw, sw, c, *rest), 2, 3)
    return x.reshape(n, h // sh, w // sw, sh * sw * c, *rest)


PLATFORMS = {"cpu": _cpu, "default": _as_channels}


def first_chunk(module: nn.Module) -> bool:
    """Returns whether the module's input is the start of a clip, and marks a stream as started."""
    first = not module.has_variable("cache", "started")
    if _is_streaming(module):
        # Not a bool, because the cache may be the result of a recomputed function, which has gradients.
        module.put_variable("cache", "started", jnp.ones(()))
    return first


def _is_streaming(module: nn.Module) -> bool:
    return module.is_mutable_collection("cache") and not module.is_initializing()


def causal_convolve(
    module: nn.Module,
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kt kh kw C features"],
    strides: Triple,
    padding: str = "first",
) -> Float[Array, "B T_out H_out W_out features"]:
    """Convolves a clip, or the next chunk of a stream, so that no output depends on a later frame.

    By default a clip is padded in front with copies of its first frame. A static video therefore gives a
    static result, each frame of which equals the result of a single image.

    If the Flax collection "cache" is mutable, the call stores the last kt - st input frames there. If the
    collection already holds frames of an earlier chunk, those frames replace the padding. A clip in chunks
    therefore gives the same result as the whole clip.

    Args:
      module: calling module, which owns the cache.
      x: clip or chunk (B, T, H, W, C); T = 1 + st·k for a clip or first chunk, st·k for a later chunk.
      kernel: kernel (kt, kh, kw, C, C').
      strides: strides (st, sh, sw), st <= kt.
      padding: what precedes a clip: 'first' for kt - 1 copies of its first frame, 'zeros' for kt - 1 zero
        frames, 'none' for nothing.

    Returns:
      (B, 1 + k, H/sh, W/sw, C'), or k frames for a later chunk, and for a first one without padding and of
      kt = st + 1.
    """
    kt, st = kernel.shape[0], strides[0]
    continues = module.has_variable("cache", "past")
    image = x.shape[1] == 1 and not continues and _image_path.get()
    if continues:
        before = module.get_variable("cache", "past")
    else:
        before = jnp.repeat(x[:, :1], kt - 1, axis=1) if padding == "first" else x[:, :0]
        if padding == "zeros":
            before = jnp.zeros((len(x), kt - 1, *x.shape[2:]), x.dtype)
    given = before.shape[1] + x.shape[1]
    if given < kt:  # the first chunk is too short to produce output
        b, _, h, w, _ = x.shape
        y = jnp.zeros((b, 0, h // strides[1], w // strides[2], kernel.shape[-1]), x.dtype)
    elif image and padding == "first":
        summed_kernel: Any = sum(kernel)  # over time, as all frames under the kernel are equal
        y = convolve(x, summed_kernel[None], (1, *strides[1:]), in_strips=True)
    elif image and padding == "zeros":
        y = convolve(x, kernel[-1:], (1, *strides[1:]), in_strips=True)  # the rest of the kernel is on zeros
    elif padding == "zeros" and not continues and _image_path.get():
        y = convolve(x, kernel, strides, lead=kt - 1, in_strips=True)
    else:
        y = convolve(x, kernel, strides, before=before, in_strips=True)
    if _is_streaming(module):
        past = jnp.concatenate([before, x], axis=1)[:, given - (kt - st) :]
        module.put_variable("cache", "past", past)
    return y


class CausalConv(nn.Module):
    """A causal 3D convolution with bias and a plain or self-modulated kernel.

    Attributes:
      features: number of output channels.
      kernel_size: frames, height and width (kt, kh, kw) of the kernel.
      strides: strides (st, sh, sw).
      modulated: whether the kernel is self-modulated, see `smc.modulate`.
      gain_init: initial gain of a self-modulated kernel.
      kernel_init, bias_init: initializers of kernel and bias.
      padding: what precedes a clip: 'first', 'zeros' or 'none', see `causal_convolve`.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    kernel_size: Triple = (3, 3, 3)
    strides: Triple = (1, 1, 1)
    modulated: bool = True
    gain_init: float = 1.0
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    padding: str = "first"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T H W C"], last: int = 0
    ) -> Float[Array, "B T_out H_out W_out features"]:
        """Maps (B, T, H, W, C) to (B, T', H', W', features), see `causal_convolve`.

        Args:
          x: clip or chunk.
          last: number of output channels to compute, counted from the end; 0 computes all.
        """
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.modulated:
            scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
            gain = self.param("gain", nn.initializers.constant(self.gain_init), ())
            kernel = modulate(kernel, scale, gain)
        bias = self.param("bias", self.bias_init, (self.features,))
        kernel, bias = kernel[..., -last:], bias[-last:]  # if last is 0: all of them
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = causal_convolve(self, x, kernel, self.strides, self.padding)
        return (y + bias).astype(self.dtype)  # added in float32, so that its gradient is a float32 sum
