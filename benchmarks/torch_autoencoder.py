"""The autoencoder of vaejax in PyTorch, for comparison; requires `pip install torch==2.13.0`."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from flax.traverse_util import flatten_dict

from vaejax.models.autoencoder import Architecture
from vaejax.models.posterior import LOG_VARIANCE_RANGE
from vaejax.models.vaejax import LOG_VARIANCE_INIT


class TorchAutoencoder(torch.nn.Module):
    """`vaejax.models.autoencoder.Autoencoder` with its default options, as a PyTorch user would write it.

    Attributes:
      planar_images: use conv2d for images, with the kernel summed over time, as in vaejax; otherwise conv3d.
      layout: memory format of activations.
    """

    def __init__(self, architecture: Architecture, params: dict, layout: torch.memory_format):
        super().__init__()
        self.a, self.layout, self.planar_images = architecture, layout, True
        self.values = torch.nn.ParameterDict()
        for path, value in flatten_dict(params, sep="/").items():
            value = torch.tensor(np.asarray(value))
            if value.dim() == 5:
                value = value.permute(4, 3, 0, 1, 2).contiguous(memory_format=layout)
            self.values[path] = torch.nn.Parameter(value)
        self.haar = {}

    def conv(self, name: str, x: torch.Tensor, strides=(1, 1, 1), last: int = 0) -> torch.Tensor:
        """`CausalConv`, on (B, C, T, H, W)."""
        kernel, bias = self.values[f"{name}/kernel"], self.values[f"{name}/bias"]
        if f"{name}/scale" in self.values:
            kernel = kernel * self.values[f"{name}/scale"][:, None, None, None]
            energy = kernel.square().sum(dim=(1, 2, 3, 4), keepdim=True)
            kernel = kernel * (self.values[f"{name}/gain"] * torch.rsqrt(energy + 1e-8))
        kernel, bias = kernel[-last:], bias[-last:]
        padding = [k // 2 if s == 1 else 0 for k, s in zip(kernel.shape[3:], strides[1:], strict=True)]
        if x.shape[2] == 1 and self.planar_images:
            image, kernel = x[:, :, 0], kernel.sum(dim=2)
            if self.layout == torch.channels_last_3d:  # strides of one frame do not show the layout
                image, kernel = (a.contiguous(memory_format=torch.channels_last) for a in (image, kernel))
            return F.conv2d(image, kernel, bias, strides[1:], padding)[:, :, None]
        if kernel.shape[2] > 1:
            x = torch.cat([x[:, :, :1]] * (kernel.shape[2] - 1) + [x], dim=2)
        return F.conv3d(x, kernel, bias, strides, (0, *padding))

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """`ResidualBlock`."""
        return x + self.conv(f"{name}/conv_1", F.silu(self.conv(f"{name}/conv_0", F.silu(x))))

    def downsample(self, name: str, x: torch.Tensor, features: int, strides, shortcut=True) -> torch.Tensor:
        """`Downsample`."""
        st, s, _ = strides
        y = self.conv(f"{name}/conv", x, strides)
        if not shortcut:
            return y
        means = space_to_depth(x, s)
        if st > 1:
            tail = means[:, :, 1:].unflatten(2, (-1, st)).mean(dim=3)
            means = torch.cat([means[:, :, :1], tail], dim=2)
        return y + average_channels(means, features)

    def upsample(self, name: str, x: torch.Tensor, features: int, strides, shortcut=True) -> torch.Tensor:
        """`Upsample`."""
        st, s, _ = strides
        phases = st * s * s * features
        last = phases // st if x.shape[2] == 1 else phases
        y = self.conv(f"{name}/conv", x, last=last)
        if shortcut:
            y = y + average_channels(x, phases)[:, -last:]
        if st > 1 and last == phases:
            y = y.unflatten(1, (st, -1)).movedim(1, 3).flatten(2, 3)[:, :, st - 1 :]
        return depth_to_space(y, s)

    def forward(self, x: torch.Tensor, noise: torch.Tensor):
        """Maps pixels (B, 3, T, H, W) to their reconstruction, the mean and the log-variance."""
        a, lowest = self.a, len(self.a.strides)
        block = (a.temporal_factor, a.spatial_factor, a.spatial_factor)
        linear = self.downsample("encoder/linear", x, a.latent_channels, block, shortcut=False)
        y = self.mix(space_to_depth(x, a.stem_factor), transpose=False).contiguous(memory_format=self.layout)
        y = self.conv("encoder/conv_in", y)
        for level in range(lowest + 1):
            if level:
                y = self.downsample(f"encoder/down_{level}", y, a.width(level), a.strides[level - 1])
            for i in range(a.encoder_blocks):
                y = self.block(f"encoder/level_{level}_block_{i}", y)
        mean, log_variance = self.conv("encoder/conv_out", y).chunk(2, dim=1)
        mean = linear + mean
        log_variance = (log_variance + LOG_VARIANCE_INIT).clamp(*LOG_VARIANCE_RANGE)
        z = mean + torch.exp(0.5 * log_variance) * noise
        linear = self.upsample("decoder/linear", z, 3, block, shortcut=False)
        y = self.conv("decoder/conv_in", z)
        for level in range(lowest, -1, -1):
            for i in range(a.decoder_blocks):
                y = self.block(f"decoder/level_{level}_block_{i}", y)
            if level:
                y = self.upsample(f"decoder/up_{level}", y, a.width(level - 1), a.strides[level - 1])
        y = self.mix(self.conv("decoder/conv_out", y), transpose=True)
        return linear + depth_to_space(y, a.stem_factor), mean, log_variance

    def mix(self, x: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Applies the Haar transform to the pixels of a patch, or its inverse."""
        rows = torch.ones(1, 1)
        while rows.shape[0] < self.a.stem_factor:
            low, high = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
            rows = torch.cat([torch.kron(rows, low), torch.kron(torch.eye(rows.shape[0]), high)]) / math.sqrt(
                2
            )
        matrix = torch.kron(rows, rows)
        matrix = matrix.T if transpose else matrix
        return torch.einsum("pq,bqcthw->bpcthw", matrix, x.unflatten(1, (matrix.shape[0], -1))).flatten(1, 2)


def average_channels(x: torch.Tensor, features: int) -> torch.Tensor:
    """`resample.average_channels`."""
    common = math.lcm(x.shape[1], features)
    x = torch.cat([x] * (common // x.shape[1]), dim=1)
    return x.unflatten(1, (-1, features)).mean(dim=1)


def space_to_depth(x: torch.Tensor, factor: int) -> torch.Tensor:
    """`resample.space_to_depth`."""
    x = x.unflatten(4, (-1, factor)).unflatten(3, (-1, factor))  # B C T h f w f
    return x.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)


def depth_to_space(x: torch.Tensor, factor: int) -> torch.Tensor:
    """`resample.depth_to_space`."""
    x = x.unflatten(1, (factor, factor, -1))  # B f f C T h w
    return x.permute(0, 3, 4, 5, 1, 6, 2).flatten(5, 6).flatten(3, 4)
