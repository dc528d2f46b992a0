"""Latent spaces made worse on purpose: what a probe that measures anything must tell from the original.

Each takes latents and their decoder and gives others, and the decoder that belongs to them.
"""

from collections.abc import Callable

import numpy as np

from vaejax.probe.latents import Latents

Decoder = Callable[[np.ndarray], np.ndarray]
WINDOW = 8  # latent pixels each way that are mixed


def mixed(latents: Latents, decode: Decoder, seed: int = 0) -> tuple[Latents, Decoder]:
    """The same information out of place: a random orthogonal mixing of the 8x8 positions of each window.

    All channels, frames and windows share one matrix, uniform over the orthogonal group; its inverse comes
    before the decoder.

    Raises:
      ValueError: if h or w is no multiple of 8.
    """
    matrix, triangle = np.linalg.qr(np.random.default_rng(seed).normal(size=(WINDOW**2, WINDOW**2)))
    matrix *= np.sign(np.diag(triangle))  # else not uniform (Mezzadri 2007)

    def mix(z: np.ndarray, matrix: np.ndarray = matrix) -> np.ndarray:
        n, t, h, w, c = z.shape
        if h % WINDOW or w % WINDOW:
            raise ValueError(f"latents of {h}x{w}; expected multiples of {WINDOW}")
        windows = z.reshape(n, t, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).swapaxes(3, 4)
        windows = windows.reshape(n, t, h // WINDOW, w // WINDOW, WINDOW**2, c)
        windows = np.einsum("pq,nthwqc->nthwpc", matrix, windows, optimize=True)
        windows = windows.reshape(n, t, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).swapaxes(3, 4)
        return windows.reshape(z.shape).astype(np.float32)

    return _changed(latents, mix), lambda z: decode(mix(z, matrix.T))


def noisy(latents: Latents, decode: Decoder, seed: int = 0) -> tuple[Latents, Decoder]:
    """White noise of each channel's own variance is added, which doubles it; the decoder is the same."""
    rng = np.random.default_rng(seed)

    def add_noise(z: np.ndarray) -> np.ndarray:
        return (z + latents.std * rng.normal(size=z.shape)).astype(np.float32)

    return _changed(latents, add_noise), decode


def _changed(latents: Latents, change: Callable[[np.ndarray], np.ndarray]) -> Latents:
    train, held_out = (change(latents.restore(z)) for z in (latents.train, latents.held_out))
    return Latents.normalised(train, held_out, latents.labels, latents.held_out_labels)
