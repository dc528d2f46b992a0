"""Where activations lie among devices: models ask, and whoever has a mesh answers."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import jax


@dataclasses.dataclass(frozen=True)
class Placement:
    """The answers; by default there is one device.

    Attributes:
      frames: places an array as `place` says.
      images: places an array as `place_images` says.
      whole: does what `whole` says.
      summed: does what `summed` says.
    """

    frames: Callable[[jax.Array], jax.Array] = lambda x: x
    images: Callable[[jax.Array], jax.Array] = lambda x: x
    whole: Callable[[jax.Array], jax.Array] = lambda x: x
    summed: Callable[..., jax.Array] = lambda f, *arrays: f(*arrays)


_placement = contextvars.ContextVar("placement", default=Placement())  # noqa: B039, frozen


def place(x: jax.Array) -> jax.Array:
    """Frames or latents (B, T, H, W, C) where they shall lie.

    Left to itself XLA splits them as it likes, and behind an upsampling by fewer devices than there are.
    """
    return _placement.get().frames(x)


def place_images(x: jax.Array) -> jax.Array:
    """Images (N, H, W, C) too small to be worth splitting, each whole."""
    return _placement.get().images(x)


def whole(kernel: jax.Array) -> jax.Array:
    """A kernel, which devices share out, gathered on each.

    Left to itself XLA shares out its convolution's channels too. Where frames are split by height the
    gradient of its input then came out several times too large (JAX 0.10, test_convolve.py).
    """
    return _placement.get().whole(kernel)


def summed(f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """f(*arrays), where f adds up over their first dimension: of each device's part, and then of all."""
    return _placement.get().summed(f, *arrays)


@contextlib.contextmanager
def placing(placement: Placement) -> Iterator[None]:
    """While tracing inside, these are the answers."""
    token = _placement.set(placement)
    try:
        yield
    finally:
        _placement.reset(token)
