"""Sharding constraints of activations: models request them, and the code that has a mesh provides them."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax
from jaxtyping import Array, Num


@dataclasses.dataclass(frozen=True)
class Placement:
    """The implementations of this module's functions; the defaults suit a single device.

    Attributes:
      frames: implementation of `place`.
      images: implementation of `place_images`.
      whole: implementation of `whole`.
      summed: implementation of `summed`.
    """

    frames: Callable[[jax.Array], jax.Array] = lambda x: x
    images: Callable[[jax.Array], jax.Array] = lambda x: x
    whole: Callable[[jax.Array], jax.Array] = lambda x: x
    summed: Callable[..., jax.Array] = lambda f, *arrays: f(*arrays)


_placement = contextvars.ContextVar("placement", default=Placement())  # noqa: B039, frozen


def place(x: Num[Array, "B T H W C"]) -> Num[Array, "B T H W C"]:
    """Constrains the sharding of frames or latents (B, T, H, W, C).

    Without the constraint XLA chooses the sharding, and behind an upsampling it leaves some devices unused.
    """
    return _placement.get().frames(x)


def place_images(x: Num[Array, "N H W C"]) -> Num[Array, "N H W C"]:
    """Constrains images (N, H, W, C) to be sharded by N alone: they are too small to split."""
    return _placement.get().images(x)


def whole(kernel: Num[Array, "..."]) -> Num[Array, "..."]:
    """Gathers a sharded kernel on every device.

    Without it XLA also splits the convolution's channels. If frames are split by height, the gradient with
    respect to the input was then several times too large (JAX 0.10, see tests/unit/models/test_conv.py).
    """
    return _placement.get().whole(kernel)


def summed(f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Computes f(*arrays) for an f that sums over the arrays' first dimension.

    Each device applies f to its part; the results are then added up.
    """
    return _placement.get().summed(f, *arrays)


@contextlib.contextmanager
def placing(placement: Placement) -> Iterator[None]:
    """Applies these constraints to everything that is traced inside."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)
