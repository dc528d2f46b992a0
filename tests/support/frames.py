"""Windows of real photos, and clips that pan over them."""

import numpy as np
from skimage import data


def photos(count, height=48, width=64):
    """Windows of photos as images, uint8 (count, 1, H, W, 3)."""
    sources = [data.astronaut(), data.coffee(), data.rocket(), data.chelsea()]
    rng, out = np.random.default_rng(0), []
    for i in range(count):
        photo = sources[i % 4]
        y, x = rng.integers(photo.shape[0] - height), rng.integers(photo.shape[1] - width)
        out.append(photo[y : y + height, x : x + width])
    return np.array(out)[:, None]


def pans(count, length, height=48, width=64):
    """Clips of a window that moves over photos, uint8 (count, length, H, W, 3)."""
    wide = photos(count, height, width + length)[:, 0]
    return np.stack([wide[:, :, t : t + width] for t in range(length)], axis=1)
