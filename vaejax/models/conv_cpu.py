"""Convolutions of clips on CPUs, by 2D convolutions and matrix products."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vaejax.models.constraints import summed

Triple = tuple[int, int, int]
Pad = tuple[int, int]  # numbers of zeros before and after
NO_PADS = ((0, 0), (0, 0))
Pads = tuple[Pad, Pad, Pad]  # of frames, rows and columns
FEW_CHANNELS = 16  # below, a strided convolution is fastest as one matrix product
BAND = 1024  # pixels of a frame whose shifted copies fit in the cache of a CPU


def convolve(x: jax.Array, kernel: jax.Array, strides: Triple, pads: Pads) -> jax.Array:
    """Convolves (B, T, H, W, C) with (kt, kh, kw, C, C'), in float32 or wider.

    Args:
      x: clip (B, T, H, W, C).
      kernel: kernel (kt, kh, kw, C, C').
      strides: strides (st, sh, sw).
      pads: zeros around the frames, the rows and the columns.

    Returns:
      (B, T', H', W', C'), in the dtype of x.
    """
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    y: Any
    if kernel.shape[:3] == strides:
        y = _patches(_pad(x, *pads), kernel)
    elif max(strides[1:]) > 1:
        x = _pad(x, *pads)
        strided = _by_columns if x.shape[-1] < FEW_CHANNELS else _by_phases
        y = sum(strided(frames, k, strides[1:]) for frames, k in _by_frame(x, kernel, strides[0]))
    elif len(kernel) == 3 and strides[0] == 1 and x.shape[1] + sum(pads[0]) > 3:
        y = _three_frames(x, kernel, pads)
    else:
        x = _pad(x, pads[0])
        y = sum(_each_frame(frames, k, pads[1:]) for frames, k in _by_frame(x, kernel, strides[0]))
    return y.astype(dtype)


def _pad(x: jax.Array, frames: Pad, rows: Pad = (0, 0), columns: Pad = (0, 0)) -> jax.Array:
    return jnp.pad(x, ((0, 0), frames, rows, columns, (0, 0)))


def _by_frame(x: jax.Array, kernel: jax.Array, stride: int) -> list[tuple[jax.Array, jax.Array]]:
    """Returns every frame of the kernel, with the frames of x that it meets."""
    span = (x.shape[1] - len(kernel)) // stride * stride + 1
    return [(x[:, i : i + span : stride], k) for i, k in enumerate(kernel)]


def _patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with strides equal to the kernel size: one matrix product."""
    (b, *size, c), block = x.shape, kernel.shape[:3]
    t, h, w = (n // k for n, k in zip(size, block, strict=True))
    x = x[:, : t * block[0]].reshape(b, t, block[0], h, block[1], w, block[2], c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t, h, w, -1)
    return x @ kernel.reshape(-1, kernel.shape[-1])


def _by_columns(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Convolves every frame of (B, T, H, W, C), unpadded, with (kh, kw, C, C') by one matrix product.

    The gradient of the kernel is therefore a matrix product too. XLA's gradient of a strided convolution
    takes 10 to 25 times as long.
    """
    (kh, kw), (sh, sw) = kernel.shape[:2], strides
    high, wide = (x.shape[2] - kh) // sh * sh + 1, (x.shape[3] - kw) // sw * sw + 1
    columns = [x[:, :, i : i + high : sh, j : j + wide : sw] for i in range(kh) for j in range(kw)]
    return jnp.concatenate(columns, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _by_phases(x: jax.Array, kernel: jax.Array, strides: tuple[int, int]) -> jax.Array:
    """Computes what `_by_columns` does by one convolution of stride 1 for each row and column of a stride.

    For 96 channels or more it takes a third to all of the time of `_by_columns`, also of its gradients.
    """
    (kh, kw), (sh, sw), (_, _, h, w, _) = kernel.shape[:2], strides, x.shape
    rows, columns = 1 + (h - kh) // sh, 1 + (w - kw) // sw

    def of_phase(i, j):
        part = kernel[i::sh, j::sw]
        span = (rows + len(part) - 1) * sh, (columns + part.shape[1] - 1) * sw
        return _each_frame(x[:, :, i : i + span[0] : sh, j : j + span[1] : sw], part, NO_PADS)

    y: Any = sum(of_phase(i, j) for i in range(min(sh, kh)) for j in range(min(sw, kw)))
    return y


def _three_frames(x: jax.Array, kernel: jax.Array, pads: Pads) -> jax.Array:
    """Convolves with (3, kh, kw, C, C') at stride 1, by about two 2D convolutions per output frame."""
    if pads[0] != (2, 0):
        x = _pad(x, pads[0])
        return _frame_pairs(x, kernel, pads[1:])[:, : x.shape[1] - 2]
    first = _each_frame(x[:, :1], kernel[2], pads[1:])  # the rest of the kernel is on zeros
    later = _frame_pairs(_pad(x, (1, 0)), kernel, pads[1:])[:, : x.shape[1] - 1]
    return jnp.concatenate([first, later], axis=1)


def _frame_pairs(x: jax.Array, kernel: jax.Array, pads: tuple[Pad, Pad]) -> jax.Array:
    """Convolves (B, T, H, W, C) with (3, kh, kw, C, C'), by four 2D convolutions per two output frames.

    This is Winograd's F(2, 3) (arXiv 1509.09308) along time alone. It is 1.3 to 1.7 times as fast as three
    2D convolutions per frame. The rounding errors of both methods are below 1e-6 of the largest output.

    Returns:
      (B, n, H', W', C'): n is T - 2, rounded up to an even number; the caller drops the surplus frame.
    """
    x = _pad(x, (0, x.shape[1] % 2))
    even, odd = x[:, 0::2], x[:, 1::2]
    x0, x1, x2, x3 = even[:, :-1], odd[:, :-1], even[:, 1:], odd[:, 1:]
    k0, k1, k2 = kernel
    y0 = _each_frame(x0 - x2, k0, pads)
    y1 = _each_frame(x1 + x2, (k0 + k1 + k2) / 2, pads)
    y2 = _each_frame(x2 - x1, (k0 - k1 + k2) / 2, pads)
    y3 = _each_frame(x1 - x3, k2, pads)
    y = jnp.stack([y0 + y1 + y2, y1 - y2 - y3], axis=2)
    return y.reshape(y.shape[0], -1, *y.shape[3:])


def _each_frame(x: jax.Array, kernel: jax.Array, pads: tuple[Pad, Pad]) -> jax.Array:
    """Convolves every frame of (B, T, H, W, C) with (kh, kw, C, C')."""
    y: Any = _convolve_2d(x.reshape(-1, *x.shape[2:]), kernel, pads)
    return y.reshape(*x.shape[:2], *y.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve_2d(x: jax.Array, kernel: jax.Array, pads: tuple[Pad, Pad]) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _convolve_2d_forward(x, kernel, pads):
    return _convolve_2d(x, kernel, pads), (x, kernel)


def _convolve_2d_backward(pads, saved, dy):
    x, kernel = saved
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    rest = _rest(kernel.shape[:2], pads)
    return _convolve_2d(dy, flipped, rest), _kernel_gradient_2d(x, dy, kernel.shape[:2], pads)


_convolve_2d.defvjp(_convolve_2d_forward, _convolve_2d_backward)


def _rest(size: tuple[int, int], pads: tuple[Pad, Pad]) -> tuple[Pad, Pad]:
    """Returns the padding of the gradient, with which it becomes as large as the input of the convolution."""
    rows, columns = ((k - 1 - before, k - 1 - after) for k, (before, after) in zip(size, pads, strict=True))
    return rows, columns


def _kernel_gradient_2d(
    x: jax.Array, dy: jax.Array, size: tuple[int, int], pads: tuple[Pad, Pad]
) -> jax.Array:
    """Computes the kernel's gradient of `_convolve_2d` by one matrix product per band of rows.

    XLA computes it as a convolution whose kernel is dy, at only 40-50 GFLOP/s on frames of 32x32 pixels or
    more. Here x is shifted along the width and dy along the height; the shifted copies of both fit in the
    cache of the CPU, which gives 190-230 GFLOP/s a core. Shifting x alone, by all nine offsets of a 3x3
    kernel, gave 60% of that; whole frames of 128x128 pixels instead of bands, half.

    Args:
      x: (N, H, W, C), the convolution's input.
      dy: (N, H', W', C'), the gradient with respect to its output.
      size: height and width (kh, kw) of the kernel.
      pads: the convolution's padding.

    Returns:
      (kh, kw, C, C').
    """
    (kh, kw), (_, h, w, c), (*_, wide, out) = size, x.shape, dy.shape
    high = min(h, max(1, BAND // wide))
    bands, (top, bottom) = -(-h // high), _rest(size, pads)[0]
    missing = bands * high - h

    def of_frames(x, dy):
        x = jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))
        dy = jnp.pad(dy, ((0, 0), (top, bottom + missing), (0, 0), (0, 0)))

        def add_band(total, i):
            frame, row = i // bands, i % bands * high
            part = jax.lax.dynamic_slice(x, (frame, row, 0, 0), (1, high, w, c))[0]
            part = jnp.pad(part, ((0, 0), pads[1], (0, 0)))
            part = jnp.concatenate([part[:, j : j + wide] for j in range(kw)], axis=-1)
            dpart = jax.lax.dynamic_slice(dy, (frame, row, 0, 0), (1, high + kh - 1, wide, out))[0]
            dpart = jnp.concatenate([dpart[j : j + high] for j in reversed(range(kh))], axis=-1)
            return total + jnp.tensordot(part, dpart, axes=((0, 1), (0, 1))), None

        start = jnp.zeros((kw * c, kh * out), x.dtype)
        return jax.lax.scan(add_band, start, jnp.arange(len(x) * bands))[0]

    # Without `summed` XLA makes every device compute all frames, with collectives inside the loop. These are
    # not ordered against the collectives outside the loop, so two CPU devices deadlock.
    return summed(of_frames, x, dy).reshape(kw, c, kh, out).transpose(2, 0, 1, 3)
