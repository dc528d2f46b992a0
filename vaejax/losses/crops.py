"""Random frames and windows of clips, for loss terms too expensive to apply to every pixel of a long clip."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vaejax.models.constraints import place_images


def random_frames(key: PRNGKeyArray, frames: int, limit: int) -> Int[Array, " n"] | None:
    """Draws the indices of `limit` distinct frames out of `frames`; None selects every frame.

    Args:
      key: random key.
      frames: number of frames of the clip.
      limit: maximum number of frames to draw.

    Returns:
      Int32 indices (limit,) in random order, or None if frames <= limit.
    """
    if frames <= limit:
        return None
    return jax.random.choice(key, frames, (limit,), replace=False)


def random_windows(
    key: PRNGKeyArray, clips: tuple[Float[Array, "B T H W C"], ...], frames: int, side: int
) -> tuple[Float[Array, "n h w C"], ...]:
    """Cuts the same random frames and the same random window out of several clips.

    Args:
      key: random key.
      clips: clips (B, T, H, W, C), all of the same shape.
      frames: maximum number of frames per clip.
      side: maximum height and width of the window in pixels; 0 keeps whole frames.

    Returns:
      Images (B · min(T, frames), min(H, side), min(W, side), C), one array for each of `clips`.
    """
    _, t, h, w, c = clips[0].shape
    key_frames, key_place = jax.random.split(key)
    chosen = random_frames(key_frames, t, frames)
    if chosen is not None:
        clips = tuple(clip[:, chosen] for clip in clips)
    height, width = (min(h, side), min(w, side)) if side else (h, w)
    if (height, width) != (h, w):
        room = jnp.array([h - height + 1, w - width + 1])
        top, left = jax.random.randint(key_place, (2,), 0, room)
        clips = tuple(
            jax.lax.dynamic_slice(clip, (0, 0, top, left, 0), (*clip.shape[:2], height, width, c))
            for clip in clips
        )
    images = tuple(clip.reshape(-1, height, width, c) for clip in clips)
    return tuple(map(place_images, images)) if side else images
