"""Pixels of any model as pictures that a screen can show."""

import numpy as np

SQUARE = 8  # side of a square of the checkerboard, in pixels
LIGHT, DARK = 255, 204  # gray levels of its squares


def visible(frames: np.ndarray) -> np.ndarray:
    """Frames (..., H, W, C) uint8 as RGB, (..., H, W, 3) uint8; those with alpha lie over a checkerboard."""
    if frames.shape[-1] == 3:
        return frames
    height, width = frames.shape[-3:-1]
    dark = (np.arange(height)[:, None] // SQUARE + np.arange(width) // SQUARE) % 2
    board = np.where(dark, DARK, LIGHT)[..., None]
    opacity = frames[..., 3:] / np.float32(255)
    return np.round(board + (frames[..., :3] - board) * opacity).astype(np.uint8)


def gray_alpha(frames: np.ndarray) -> np.ndarray:
    """The alpha of RGBA frames (..., H, W, 4) uint8 as gray RGB, (..., H, W, 3): white is opaque."""
    return np.repeat(frames[..., 3:], 3, axis=-1)
