"""Where activations lie among devices: models ask, and whoever has a mesh answers."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

_place = contextvars.ContextVar("place", default=lambda x: x)


def place(x: jax.Array) -> jax.Array:
    """Frames or latents (B, T, H, W, C) where they shall lie.

    Left to itself XLA splits them as it likes, and behind an upsampling by fewer devices than there are.
    """
    return _place.get()(x)


@contextlib.contextmanager
def placing(by: Callable[[jax.Array], jax.Array]) -> Iterator[None]:
    """While tracing inside, activations are placed by this function."""
    token = _place.set(by)
    try:
        yield
    finally:
        _place.reset(token)
