"""Device-specific hooks, mostly sharding: models call them, `runtime.mesh` implements them for a mesh."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
from jaxtyping import Array, Num


class Strips(NamedTuple):
    """Splits frames whose height the devices share into strips, one sample per device, and joins them again.

    Attributes:
      split: function of (frames, above, below) that returns strips. Each has `above` rows of the strip above
        it and `below` rows of the strip below it; beyond the frame these rows are zeros.
      join: function of strips without rows of their neighbors that returns frames.
    """

    split: Callable[[jax.Array, int, int], jax.Array]
    join: Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Placement:
    """The implementations behind this module's functions; the defaults suit a single device.

    Attributes:
      frames: implementation of `place`.
      images: implementation of `place_images`.
      whole: implementation of `whole`.
      summed: implementation of `summed`.
      strips: implementation of `strips`.
      on_tpu: see `on_tpu`.
    """

    frames: Callable[[jax.Array], jax.Array] = lambda x: x
    images: Callable[[jax.Array], jax.Array] = lambda x: x
    whole: Callable[[jax.Array], jax.Array] = lambda x: x
    summed: Callable[..., jax.Array] = lambda f, *arrays: f(*arrays)
    strips: Callable[[jax.Array, int], Strips | None] = lambda x, rows: None
    on_tpu: bool = False


_placement = contextvars.ContextVar("placement", default=Placement())  # noqa: B039, frozen


def place(x: Num[Array, "B T H W C"]) -> Num[Array, "B T H W C"]:
    """Constrains the sharding of frames or latents (B, T, H, W, C).

    Without the constraint XLA chooses the sharding, and after an upsampling it leaves some devices idle.
    """
    return _placement.get().frames(x)


def place_images(x: Num[Array, "N H W C"]) -> Num[Array, "N H W C"]:
    """Constrains images (N, H, W, C) to be split along N or not at all.

    Images are too small to be split by height.
    """
    return _placement.get().images(x)


def whole(kernel: Num[Array, "..."]) -> Num[Array, "..."]:
    """Gathers a sharded kernel, so that every device holds all of it.

    Otherwise XLA may split a convolution by channels. If frames are also split by height, JAX 0.10 computes
    an input gradient that is several times too large (tests/unit/models/test_conv.py).
    """
    return _placement.get().whole(kernel)


def summed(f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Computes f(*arrays) for an f whose result is a sum over the arrays' first dimension.

    The devices apply f to slices of that dimension, and the results are added up. If the dimension cannot be
    divided into equal slices, every device applies f to the whole arrays.
    """
    return _placement.get().summed(f, *arrays)


def strips(x: Num[Array, "B T H W C"], rows: int) -> Strips | None:
    """How to divide frames (B, T, H, W, C) among the devices that share their height.

    Returns None if the devices do not share the height, or if a strip would have fewer than `rows` rows.
    """
    return _placement.get().strips(x, rows)


def on_tpu() -> bool:
    """Whether the program is for TPUs."""
    return _placement.get().on_tpu


@contextlib.contextmanager
def placing(placement: Placement) -> Iterator[None]:
    """Uses `placement` for the functions of this module in all code that JAX traces inside the context."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)
