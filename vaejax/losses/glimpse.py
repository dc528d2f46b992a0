"""Glimpses of clips: a few frames and a window, for the terms that cannot afford the whole of a long clip."""

import jax
import jax.numpy as jnp

from vaejax.models.constraints import place_images


def some_frames(key: jax.Array, count: int, most: int) -> jax.Array | None:
    """Which frames to look at: `most` different ones of `count`, drawn at random; None for all of them."""
    if count <= most:
        return None
    return jax.random.choice(key, count, (most,), replace=False)


def window(key: jax.Array, clips: tuple[jax.Array, ...], frames: int, side: int) -> tuple[jax.Array, ...]:
    """The same random frames and window of several clips, as images.

    Args:
      key: draws them.
      clips: (B, T, H, W, C) each, of one shape.
      frames: the most frames of a clip.
      side: the most pixels each way; 0 takes whole frames.

    Returns:
      (B · min(T, frames), min(H, side), min(W, side), C) each.
    """
    _, t, h, w, c = clips[0].shape
    key_frames, key_place = jax.random.split(key)
    chosen = some_frames(key_frames, t, frames)
    if chosen is not None:
        clips = tuple(clip[:, chosen] for clip in clips)
    high, wide = (min(h, side), min(w, side)) if side else (h, w)
    if (high, wide) != (h, w):
        room = jnp.array([h - high + 1, w - wide + 1])
        top, left = jax.random.randint(key_place, (2,), 0, room)
        clips = tuple(
            jax.lax.dynamic_slice(clip, (0, 0, top, left, 0), (*clip.shape[:2], high, wide, c))
            for clip in clips
        )
    images = tuple(clip.reshape(-1, high, wide, c) for clip in clips)
    return tuple(map(place_images, images)) if side else images
