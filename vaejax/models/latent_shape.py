"""Sizes of clips and of their latents: T frames of H x W pixels are t latent frames of h x w."""


def latent_frames(frames: int, temporal_factor: int) -> int:
    """Latent frames t of T frames: one for the first frame, one for each started group of those after it."""
    return 1 + _ceil_div(frames - 1, temporal_factor)


def latent_side(pixels: int, spatial_factor: int) -> int:
    """Latent pixels of a side of H or W pixels; a started block counts as one."""
    return _ceil_div(pixels, spatial_factor)


def decoded_frames(latent_frames: int, temporal_factor: int) -> int:
    """Frames T that t latent frames decode to: one for the first, temporal_factor for each after it."""
    return 1 + (latent_frames - 1) * temporal_factor


def _ceil_div(value: int, factor: int) -> int:
    return -(-value // factor)
