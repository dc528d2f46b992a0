"""Where activations lie among devices: models ask, and whoever has a mesh answers."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

_place = contextvars.ContextVar("place", default=lambda x: x)
_summed = contextvars.ContextVar("summed", default=lambda f, *arrays: f(*arrays))


def place(x: jax.Array) -> jax.Array:
    """Frames or latents (B, T, H, W, C) where they shall lie.

    Left to itself XLA splits them as it likes, and behind an upsampling by fewer devices than there are.
    """
    return _place.get()(x)


def summed(f: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """f(*arrays), where f adds up over their first dimension: of each device's part, and then of all."""
    return _summed.get()(f, *arrays)


@contextlib.contextmanager
def placing(place: Callable[[jax.Array], jax.Array], summed: Callable[..., jax.Array]) -> Iterator[None]:
    """While tracing inside, these functions take the place of the two above."""
    tokens = _place.set(place), _summed.set(summed)
    try:
        yield
    finally:
        for variable, token in zip((_place, _summed), tokens, strict=True):
            variable.reset(token)
