"""Compares an exported autoencoder in PyTorch with its source in vaejax."""

from typing import Any

import numpy as np

from vaejax.codec import network
from vaejax.codec.load import TrainedVAE
from vaejax.errors import TrainingFailed
from vaejax.export import verify
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.pixels import from_uint8

# Largest accepted difference, relative to the largest absolute value. Both compute in float32, by different
# algorithms.
TOLERANCE = 1e-4


def differences(theirs: Any, stored: TrainedVAE) -> dict[str, float]:
    """Compares means, log-variances and pixels of a test clip and an image, in float32.

    Args:
      theirs: the autoencoder in PyTorch, with the calls of diffusers' video autoencoders.
      stored: the VAE with the parameters that the export holds.

    Returns:
      Largest differences, relative to the largest absolute value: {'mean', 'log_variance', 'pixels'}.

    Raises:
      TrainingFailed: if one exceeds `TOLERANCE`.
    """
    import torch

    def tensor(x: Any) -> torch.Tensor:
        return torch.from_numpy(np.moveaxis(np.asarray(x), -1, 1).copy())

    model = Autoencoder(stored.architecture.replace(remat=(), dtype="float32"))
    architecture = stored.architecture
    clip = verify.moving_waves(*verify.clip_shape(architecture), architecture.pixel_channels)
    worst: dict[str, float] = {}
    for frames in (clip[None], clip[None, :1]):
        mean, log_variance = network.posterior(model, stored.params, frames)
        pixels = network.decode(model, stored.params, mean)
        with torch.no_grad():
            found = theirs.encode(tensor(from_uint8(frames))).latent_dist
            decoded = theirs.decode(tensor(mean)).sample.clamp(-1, 1)
        for name, one, other in (
            ("mean", found.mean, mean),
            ("log_variance", found.logvar, log_variance),
            ("pixels", decoded, pixels),
        ):
            other = np.moveaxis(np.asarray(other), -1, 1)
            error = float(np.abs(one.numpy() - other).max() / np.abs(other).max())
            if not error <= TOLERANCE:  # rather than `>`, to reject NaN
                raise TrainingFailed(
                    f"{name} in PyTorch differs from that in vaejax by {error:.2g} of the largest; nothing"
                    " was written"
                )
            worst[name] = max(worst.get(name, 0.0), error)
    return worst
