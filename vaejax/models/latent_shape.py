"""Sizes of clips and of their latents: T frames of H x W pixels become t latent frames of h x w."""


def latent_frames(frames: int, temporal_factor: int) -> int:
    """Returns t = 1 + (T - 1) / temporal_factor, rounded up: the first frame has its own latent frame."""
    return 1 + _ceil_div(frames - 1, temporal_factor)


def latent_side(pixels: int, spatial_factor: int) -> int:
    """Returns the latent height or width h = H / spatial_factor, rounded up."""
    return _ceil_div(pixels, spatial_factor)


def decoded_frames(latent_frames: int, temporal_factor: int) -> int:
    """Returns the number T of frames: one for the first latent frame, temporal_factor for each later one."""
    return 1 + (latent_frames - 1) * temporal_factor


def _ceil_div(value: int, factor: int) -> int:
    return -(-value // factor)
