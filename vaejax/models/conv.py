"""Convolutions of clips: a fast one per platform, and a causal one that can continue a stream in chunks."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vaejax.models.constraints import summed, whole
from vaejax.models.smc import modulate

Triple = tuple[int, int, int]
LANES = 128  # TPUs pad channels to a multiple of this

_image_path = contextvars.ContextVar("image_path", default=True)


@contextlib.contextmanager
def general_path() -> Iterator[None]:
    """Inside the context, images use the 3D convolution of clips, for comparison with their 2D shortcut."""
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
) -> Float[Array, "B T_out H_out W_out features"]:
    """Convolves a clip, without padding in time.

    Each platform has its own implementation of the same sums:

    - CPU: 2D convolutions and matrix products, in float32 or wider. On two cores, the gradients of a whole
      autoencoder take a third of the time of XLA's 3D convolution for videos, and half of it for images.
    - NVIDIA GPU: one 2D convolution, with the frames that the kernel covers concatenated along channels.
    - TPU and any other platform: XLA's 3D convolution and its gradients.

    The platform is chosen when JAX lowers the program, so a program compiled for a TPU on a CPU host uses the
    TPU's version.

    Args:
      x: clip (B, T, H, W, C).
      kernel: kernel (kt, kh, kw, C, C').
      strides: strides (st, sh, sw).
      same: whether to pad height and width with zeros, by kernel size minus stride (not XLA's 'SAME').

    Returns:
      (B, 1 + (T - kt) // st, H', W', C'): H' = H // sh if `same`, else 1 + (H - kh) // sh; W' likewise.
    """
    return _convolve(x, kernel, strides, same)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: Triple, same: bool) -> jax.Array:
    choices = {name: functools.partial(f, strides=strides, same=same) for name, f in PLATFORMS.items()}
    return jax.lax.platform_dependent(x, whole(kernel), **choices)


def _convolve_forward(x, kernel, strides, same):
    return _convolve(x, kernel, strides, same), (x, kernel)


def _convolve_backward(strides, same, saved, dy):
    # Differentiating `platform_dependent` itself would store the residuals of all branches, so each branch
    # computes its own gradients.
    def gradients(f):
        f = functools.partial(f, strides=strides, same=same)
        return lambda x, kernel, dy: jax.vjp(f, x, kernel)[1](dy)

    choices = {name: gradients(f) for name, f in PLATFORMS.items()}
    x, kernel = saved
    return jax.lax.platform_dependent(x, whole(kernel), dy, **choices)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _padding(kernel: jax.Array, strides: Triple, same: bool) -> list[tuple[int, int]]:
    """Returns the (before, after) padding of height and of width."""
    surplus = [(k - s) * same for k, s in zip(kernel.shape[1:3], strides[1:], strict=True)]
    return [(n // 2, n - n // 2) for n in surplus]


def _native(x: jax.Array, kernel: jax.Array, strides: Triple, same: bool) -> jax.Array:
    """Computes the convolution by XLA's 3D operator.

    A TPU pads channels to 128, so an input of 3 channels would occupy 43 times its size. Blocks of pixels, as
    large as the strides, are therefore first moved into the channels. This is only done for fewer than 128
    channels, and for strides above 1 that divide the height and width of the kernel.
    """
    padding = [(0, 0), *_padding(kernel, strides, same)]
    dimensions = ("NDHWC", "DHWIO", "NDHWC")
    divides = all(k % s == 0 for k, s in zip(kernel.shape[1:3], strides[1:], strict=True))
    if max(strides[1:]) > 1 and divides and x.shape[-1] < LANES:
        x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        x = x[:, :, : x.shape[2] // strides[1] * strides[1], : x.shape[3] // strides[2] * strides[2]]
        x = _to_channels(x, strides[1:])
        kernel = _to_channels(kernel[None], strides[1:])[0]
        strides, padding = (strides[0], 1, 1), [(0, 0)] * 3
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimensions)


def _to_channels(x: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Rearranges (B, T, H, W, C, ...) to (B, T, H/sh, W/sw, sh·sw·C, ...)."""
    (b, t, h, w, c, *rest), (sh, sw) = x.shape, strides
    x = jnp.moveaxis(x.reshape(b, t, h // sh, sh, w // sw, sw, c, *rest), 3, 4)
    return x.reshape(b, t, h // sh, w // sw, sh * sw * c, *rest)


def _gpu(x: jax.Array, kernel: jax.Array, strides: Triple, same: bool) -> jax.Array:
    """Computes the convolution as one 2D convolution, with the kernel's frames concatenated along channels.

    In bfloat16 on an H100, XLA's 3D convolutions with a kernel of three frames, and their gradients, take 1.1
    to 1.8 times as long.
    """
    (b, t, *_), (kt, kh, kw, c, out) = x.shape, kernel.shape
    n = 1 + (t - kt) // strides[0]
    frames = [x[:, i : i + strides[0] * (n - 1) + 1 : strides[0]] for i in range(kt)]
    x = jnp.concatenate(frames, axis=-1).reshape(b * n, *x.shape[2:4], kt * c)
    kernel = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, out)
    dimensions = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(
        x, kernel, strides[1:], _padding(kernel[None], strides, same), dimension_numbers=dimensions
    )
    return y.reshape(b, n, *y.shape[1:])


def _cpu(x: jax.Array, kernel: jax.Array, strides: Triple, same: bool) -> jax.Array:
    """Computes the convolution by 2D convolutions and matrix products, in float32 or wider."""
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    y: Any
    b, t, h, w, _ = x.shape
    (kt, kh, kw), (st, sh, sw) = kernel.shape[:3], strides
    n = 1 + (t - kt) // st
    if (kt, kh, kw) == strides:  # disjoint patches: one matrix product
        x = x[:, : n * st].reshape(b, n, st, h // sh, sh, w // sw, sw, -1).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        y = x.reshape(b, n, h // sh, w // sw, -1) @ kernel.reshape(-1, kernel.shape[-1])
    elif max(strides) > 1 or not same:
        x = jnp.pad(x, ((0, 0), (0, 0), *_padding(kernel, strides, same), (0, 0)))
        y = sum(_by_columns(x[:, i : i + st * n : st], kernel[i], (sh, sw)) for i in range(kt))
    elif kt == 3 and n > 1:
        y = _frame_pairs(x, kernel)[:, :n]
    else:
        y = sum(_each_frame(x[:, i : i + n], kernel[i]) for i in range(kt))
    return y.astype(dtype)


def _by_columns(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Convolves every frame of (B, T, H, W, C), unpadded, with (kh, kw, C, C') by one matrix product.

    The gradient of the kernel is therefore a matrix product too. XLA's gradient of a strided convolution
    takes 10 to 25 times as long.
    """
    (kh, kw), (sh, sw) = kernel.shape[:2], strides
    high, wide = (x.shape[2] - kh) // sh * sh + 1, (x.shape[3] - kw) // sw * sw + 1
    columns = [x[:, :, i : i + high : sh, j : j + wide : sw] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(columns, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _frame_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves (B, T, H, W, C) with (3, kh, kw, C, C'), by four 2D convolutions per two output frames.

    This is Winograd's F(2, 3) (arXiv 1509.09308) along time alone. It is 1.3 to 1.7 times as fast as three
    2D convolutions per frame. The rounding errors of both methods are below 1e-6 of the largest output.

    Returns:
      (B, n, H, W, C'): n is T - 2, rounded up to an even number; the caller drops the surplus frame.
    """
    x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0), (0, 0)))
    even, odd = x[:, 0::2], x[:, 1::2]
    x0, x1, x2, x3 = even[:, :-1], odd[:, :-1], even[:, 1:], odd[:, 1:]
    k0, k1, k2 = kernel
    y0 = _each_frame(x0 - x2, k0)
    y1 = _each_frame(x1 + x2, (k0 + k1 + k2) / 2)
    y2 = _each_frame(x2 - x1, (k0 - k1 + k2) / 2)
    y3 = _each_frame(x1 - x3, k2)
    y = jnp.stack([y0 + y1 + y2, y1 - y2 - y3], axis=2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def _each_frame(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves every frame of (B, T, H, W, C) with (kh, kw, C, C'); zero padding keeps H and W."""
    y = _convolve_2d(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(*x.shape[:2], *y.shape[1:])


@jax.custom_vjp
def _convolve_2d(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve_2d_forward(x, kernel):
    return _convolve_2d(x, kernel), (x, kernel)


def _convolve_2d_backward(saved, dy):
    x, kernel = saved
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    return _convolve_2d(dy, flipped), _kernel_gradient_2d(x, dy, kernel.shape[:2])


_convolve_2d.defvjp(_convolve_2d_forward, _convolve_2d_backward)


def _kernel_gradient_2d(x: jax.Array, dy: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Computes the kernel's gradient of `_convolve_2d` by one matrix product per frame.

    XLA computes it as a convolution whose kernel is dy, at only 40-50 GFLOP/s on frames of 32x32 pixels or
    more. Here x is shifted along the width and dy along the height; the shifted copies of both fit in the
    cache of the CPU, which gives 170-210 GFLOP/s. Shifting x alone, by all nine offsets of a 3x3 kernel, gave
    130 GFLOP/s.

    Args:
      x: (N, H, W, C), the convolution's input.
      dy: (N, H, W, C'), the gradient with respect to its output.
      size: height and width (kh, kw) of the kernel.

    Returns:
      (kh, kw, C, C').
    """
    (kh, kw), (_, h, w, c), out = size, x.shape, dy.shape[-1]

    def add_frame(total, frame):
        x, dy = frame
        x = jnp.pad(x, ((0, 0), (kw // 2, kw // 2), (0, 0)))
        dy = jnp.pad(dy, ((kh // 2, kh // 2), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, i : i + w] for i in range(kw)], axis=-1)
        dy = jnp.concatenate([dy[i : i + h] for i in reversed(range(kh))], axis=-1)
        return total + jnp.tensordot(x, dy, axes=((0, 1), (0, 1))), None

    def of_frames(x, dy):
        return jax.lax.scan(add_frame, jnp.zeros((kw * c, kh * out), x.dtype), (x, dy))[0]

    # Without `summed` XLA makes every device compute all frames, with collectives inside the loop. These are
    # not ordered against the collectives outside the loop, so two CPU devices deadlock.
    return summed(of_frames, x, dy).reshape(kw, c, kh, out).transpose(2, 0, 1, 3)


PLATFORMS = {"cpu": _cpu, "cuda": _gpu, "default": _native}


def first_chunk(module: nn.Module) -> bool:
    """Returns whether the module's input is the start of a clip, and marks a stream as started."""
    first = not module.has_variable("cache", "started")
    if _is_streaming(module):
        module.put_variable("cache", "started", jnp.ones((), bool))
    return first


def _is_streaming(module: nn.Module) -> bool:
    return module.is_mutable_collection("cache") and not module.is_initializing()


def causal_convolve(
    module: nn.Module,
    x: Float[Array, "B T H W C"],
    kernel: Float[Array, "kt kh kw C features"],
    strides: Triple,
) -> Float[Array, "B T_out H_out W_out features"]:
    """Convolves a clip, or the next chunk of a stream, so that no output depends on a later frame.

    A clip is padded in front with copies of its first frame. A static video therefore gives a static result,
    each frame of which equals the result of a single image.

    If the Flax collection "cache" is mutable, the call stores the last kt - st input frames there. If the
    collection already holds frames of an earlier chunk, those frames replace the copies. A clip in chunks
    therefore gives the same result as the whole clip.

    Args:
      module: calling module, which owns the cache.
      x: clip or chunk (B, T, H, W, C); T = 1 + st·k for a clip or first chunk, st·k for a later chunk.
      kernel: kernel (kt, kh, kw, C, C').
      strides: strides (st, sh, sw), st <= kt.

    Returns:
      (B, 1 + k, H/sh, W/sw, C'), or k frames for a later chunk.
    """
    continues = module.has_variable("cache", "past")
    if x.shape[1] == 1 and not continues and _image_path.get():
        summed_kernel: Any = sum(kernel)  # over time, as all frames under the kernel are equal
        y = convolve(x, summed_kernel[None], (1, *strides[1:]))
        past = jnp.repeat(x, kernel.shape[0] - strides[0], axis=1)
    else:
        if continues:
            before = module.get_variable("cache", "past")
        else:
            before = jnp.repeat(x[:, :1], kernel.shape[0] - 1, axis=1)
        padded = jnp.concatenate([before, x], axis=1)
        y = convolve(padded, kernel, strides)
        past = padded[:, padded.shape[1] - (kernel.shape[0] - strides[0]) :]
    if _is_streaming(module):
        module.put_variable("cache", "past", past)
    return y


class CausalConv(nn.Module):
    """A causal 3D convolution with bias and a plain or self-modulated kernel.

    Attributes:
      features: number of output channels.
      kernel_size: frames, height and width (kt, kh, kw) of the kernel.
      strides: strides (st, sh, sw): all 1, or equal to the kernel size.
      modulated: whether the kernel is self-modulated, see `smc.modulate`.
      gain_init: initial gain of a self-modulated kernel.
      kernel_init: initializer of the kernel.
      dtype: compute dtype; parameters are float32.
    """

    features: int
    kernel_size: Triple = (3, 3, 3)
    strides: Triple = (1, 1, 1)
    modulated: bool = True
    gain_init: float = 1.0
    kernel_init: nn.initializers.Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
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
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = kernel[..., -last:], bias[-last:]  # if last is 0: all of them
        y = causal_convolve(self, x.astype(self.dtype), kernel.astype(self.dtype), self.strides)
        return y + bias.astype(self.dtype)
