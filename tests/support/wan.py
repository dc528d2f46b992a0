"""Small autoencoders of Wan, as diffusers and as this package build them, with the same random tensors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLWan
from flax.traverse_util import flatten_dict, unflatten_dict

from vaejax.models import wan_names
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.models.wan import SIZES, WanDesign

CHANNELS = 3  # of the latent

torch.set_num_threads(1)  # more only wait for each other


def design(version: str = "2.1", **changes) -> WanDesign:
    """A design like that of Wan 2.1 or 2.2, with few channels; 'wan2.1' and 'wan2.2' have all of them."""
    if version in SIZES:
        return WanDesign(**SIZES[version], pixel_channels=3, remat=(), dtype="float32")
    fields = {
        "encoder_widths": (4, 8, 16, 16),
        "decoder_widths": (8, 16, 32, 32) if version == "2.2" else (4, 8, 16, 16),
        "encoder_blocks": 1,
        "decoder_blocks": 2,
        "latent_channels": CHANNELS,
        "temporal_downsample": (False, True, True),
        "patch": 2 if version == "2.2" else 1,
        "averaging": version == "2.2",
        "pixel_channels": 3,
        "remat": (),
        "dtype": "float32",
    }
    return WanDesign(**(fields | changes))


def model_of(design: WanDesign) -> Autoencoder:
    """The autoencoder with both halves of a design."""
    return Autoencoder(Architecture(design, design))


def in_diffusers(design: WanDesign) -> AutoencoderKLWan:
    """The autoencoder of diffusers that a design describes."""
    base = design.encoder_widths[0]
    pixels = design.pixel_channels * design.patch**2
    return AutoencoderKLWan(
        base_dim=base,
        decoder_base_dim=design.decoder_widths[0],
        z_dim=design.latent_channels,
        dim_mult=[width // base for width in design.encoder_widths],
        num_res_blocks=design.encoder_blocks,
        temperal_downsample=list(design.temporal_downsample),
        is_residual=design.averaging,
        in_channels=pixels,
        out_channels=pixels,
        patch_size=design.patch if design.patch > 1 else None,
        scale_factor_spatial=design.spatial_factor,
    ).eval()


@functools.cache
def pair(design: WanDesign, seed: int = 0) -> tuple[AutoencoderKLWan, dict]:
    """An autoencoder of diffusers, every tensor of which is random, and the same parameters in our tree.

    Pixels stay within [-0.9, 0.9] or so, because diffusers clips decoded pixels at 1.
    """
    theirs, generator = in_diffusers(design), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("gamma"):
                tensor.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                tensor.copy_(0.2 * noise)
            else:
                tensor.copy_(noise / np.sqrt(np.prod(tensor.shape[1:])))
        theirs.decoder.conv_out.weight.mul_(0.2)
    return theirs, unflatten_dict(dict(path_and_leaf(*item) for item in theirs.state_dict().items()))


def path_and_leaf(name: str, tensor: torch.Tensor) -> tuple[tuple[str, ...], np.ndarray]:
    """The path and the value of a parameter of ours that a tensor of diffusers gives."""
    path = wan_names.from_diffusers(name)
    return path, wan_names.from_torch(path, tensor.detach().numpy().copy())


def parameter_shapes(design: WanDesign) -> dict[tuple[str, ...], tuple[int, ...]]:
    """The shape of every parameter of our autoencoder, by path."""
    model, key = model_of(design), jax.random.key(0)
    shapes = jax.eval_shape(model.init, key, jnp.zeros(model.architecture.example_shape), key)["params"]
    return {path: leaf.shape for path, leaf in flatten_dict(shapes).items()}


def moments(theirs: AutoencoderKLWan, x: np.ndarray) -> torch.Tensor:
    """The moments (b, t, h, w, 2c) in which diffusers encodes pixels (B, T, H, W, C)."""
    posterior = theirs.encode(to_torch(x, theirs)).latent_dist
    return posterior.parameters.permute(0, 2, 3, 4, 1).float()


def pixels(theirs: AutoencoderKLWan, z: np.ndarray) -> torch.Tensor:
    """The pixels (B, T, H, W, C) to which diffusers decodes latents; none of them may have been clipped."""
    x = theirs.decode(to_torch(z, theirs)).sample.permute(0, 2, 3, 4, 1).float()
    assert x.abs().max() < 1
    return x


def to_torch(x: np.ndarray, theirs: AutoencoderKLWan) -> torch.Tensor:
    """Frames (B, T, H, W, C) as (B, C, T, H, W) in the data type of a model."""
    return torch.tensor(np.asarray(x)).permute(0, 4, 1, 2, 3).to(theirs.dtype)
