"""A causal 3D variational autoencoder of images and videos, trained with vaejax, in PyTorch.

This file needs only `torch` and `safetensors`. `python -m vaejax.export RUN OUT --format=torch` puts it into
OUT as autoencoder.py, beside model.safetensors and config.json:

    from autoencoder import Autoencoder

    vae = Autoencoder.from_pretrained("OUT")
    z = vae.encode(x).latent_dist.mode()  # pixels (B, 3, T, H, W) in [-1, 1] to latents (B, c, t, h, w)
    x = vae.decode(z).sample

Calls and results are those of the video autoencoders of diffusers. Shapes: B batch, C channels, T frames,
H height, W width of pixels and activations; c t h w of latents. T = 1 + ft·k frames become t = 1 + k latent
frames, so an image is a clip of one frame. H = fs·h and W = fs·w. License: Apache-2.0.
"""

import json
import math
import os
import pathlib
import shutil
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

FORMAT = "vaejax.torch"  # value of 'format' in config.json
LOG_VARIANCE_INIT = -8.0  # the encoder's network predicts the difference to this log-variance

Triple = tuple[int, int, int]
# What a stream remembers of its earlier chunks: the last input frames of each convolution.
Cache = dict[nn.Module, Tensor]


class CausalConv(nn.Module):
    """A 3D convolution whose outputs depend on no later frame, with a plain or a self-modulated kernel.

    A clip is padded in front with copies of its first frame, and a later chunk of a stream with the last
    frames of the chunk before. Height and width are padded with zeros.

    Parameters: weight (C', C, kt, kh, kw), bias (C'); if modulated, also scale (C) and gain ().
    """

    def __init__(self, channels: int, features: int, size=(3, 3, 3), strides=(1, 1, 1), modulated=False):
        super().__init__()
        self.strides = strides
        self.padding = tuple((k - s) // 2 for k, s in zip(size[1:], strides[1:], strict=True))
        self.weight = nn.Parameter(
            torch.randn(features, channels, *size) / (channels * math.prod(size)) ** 0.5
        )
        self.bias = nn.Parameter(torch.zeros(features))
        self.scale = nn.Parameter(torch.ones(channels)) if modulated else None
        self.gain = nn.Parameter(torch.ones(())) if modulated else None

    def kernel(self) -> Tensor:
        """The kernel (C', C, kt, kh, kw).

        A self-modulated kernel (LiteVAE, arXiv 2405.14477) has norm |gain| for every output channel, so
        growing weights cannot make activations grow. It is computed in float32.
        """
        if self.scale is None or self.gain is None:
            return self.weight
        kernel = self.weight.float() * self.scale.float().view(-1, 1, 1, 1)
        energy = kernel.square().sum(dim=(1, 2, 3, 4), keepdim=True)
        return kernel * (self.gain.float() * torch.rsqrt(energy + 1e-8))

    def forward(self, x: Tensor, cache: Cache | None = None, last: int = 0) -> Tensor:
        """Maps (B, C, 1 + st·k, H, W) to (B, C', 1 + k, H/sh, W/sw), in the dtype of x.

        Args:
          x: a clip, or the next chunk of a stream; a later chunk has st·k frames, which become k.
          cache: the cache of the stream.
          last: number of output channels to compute, counted from the end; 0 computes all.
        """
        kernel, bias = self.kernel()[-last:].to(x.dtype), self.bias[-last:].to(x.dtype)
        past = None if cache is None else cache.get(self)
        covered = kernel.shape[2]
        kept = covered - self.strides[0]  # frames that the next chunk needs
        if x.shape[2] == 1 and past is None:
            # All frames under the kernel are equal, so the kernel is summed over time.
            y = F.conv2d(x[:, :, 0], kernel.sum(dim=2), bias, self.strides[1:], self.padding)[:, :, None]
            frames = x.expand(-1, -1, kept, -1, -1)
        else:
            past = x[:, :, :1].expand(-1, -1, covered - 1, -1, -1) if past is None else past
            frames = torch.cat([past, x], dim=2)
            y = F.conv3d(frames, kernel, bias, self.strides, (0, *self.padding))
        if cache is not None:
            cache[self] = frames[:, :, frames.shape[2] - kept :].clone()
        return y


class PixelNorm(nn.Module):
    """RMS normalization over the channels of each pixel, in float32. Parameter: scale (C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, ...) to the same shape."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(dim=1, keepdim=True) + 1e-6)
        return (y * self.scale.float().view(-1, *(1,) * (x.dim() - 2))).to(x.dtype)


class FrameGroupNorm(nn.GroupNorm):
    """Group normalization of each frame alone, in at most 32 groups. Parameters: weight (C), bias (C)."""

    def __init__(self, channels: int):
        super().__init__(max(g for g in range(1, 33) if channels % g == 0), channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        y = super().forward(x.transpose(1, 2).flatten(0, 1))
        return y.unflatten(0, (x.shape[0], -1)).transpose(1, 2).to(x.dtype)


class Film(nn.Module):
    """Scales and shifts activations differently for images and videos (FiLM, arXiv 1709.07871).

    Parameter: modality (2, 2, C): first image, then video; of each first the scale, then the shift.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.modality = nn.Parameter(torch.zeros(2, 2, channels))

    def forward(self, x: Tensor, is_video: bool) -> Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        scale, shift = self.modality[int(is_video)].to(x.dtype).view(2, -1, 1, 1, 1)
        return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """The residual block x + conv(SiLU(conv(SiLU(x)))), with optional normalizations and FiLM."""

    def __init__(self, channels: int, conv: str, film: bool, pixel_norm: bool):
        super().__init__()
        norm = FrameGroupNorm if conv == "groupnorm" else nn.Identity
        self.pixel_norm = PixelNorm(channels) if pixel_norm else nn.Identity()
        self.norm_0 = norm(channels)
        self.conv_0 = CausalConv(channels, channels, modulated=conv == "smc")
        self.norm_1 = norm(channels)
        self.film = Film(channels) if film else None
        self.conv_1 = CausalConv(channels, channels, modulated=conv == "smc")

    def forward(self, x: Tensor, is_video: bool, cache: Cache | None = None) -> Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        y = self.conv_0(F.silu(self.norm_0(self.pixel_norm(x))), cache)
        y = self.norm_1(y)
        if self.film is not None:
            y = self.film(y, is_video)
        return x + self.conv_1(F.silu(y), cache)


class FrameAttention(nn.Module):
    """Single-head self-attention within each frame, whose queries and keys may be RMS-normalized."""

    def __init__(self, channels: int, qk_norm: bool):
        super().__init__()
        self.norm = PixelNorm(channels)
        self.query_norm, self.key_norm = (PixelNorm(channels) if qk_norm else nn.Identity() for _ in range(2))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        b, _, t, h, w = x.shape
        pixels = x.permute(0, 2, 3, 4, 1).flatten(0, 3)  # (B·T·H·W, C)
        query, key, value = self.qkv(self.norm(pixels)).chunk(3, dim=1)
        query, key = self.query_norm(query), self.key_norm(key)
        y = F.scaled_dot_product_attention(*(a.view(b * t, 1, h * w, -1) for a in (query, key, value)))
        return x + self.out(y).view(b, t, h, w, -1).permute(0, 4, 1, 2, 3)


class Downsample(nn.Module):
    """Reduces space and time by a convolution with kernel size = strides, plus an averaging shortcut.

    For st = 2, frames are grouped as 0 | 1 2 | 3 4 ...: the first frame is a group of its own.
    """

    def __init__(self, channels: int, features: int, strides: Triple, modulated=False, shortcut=True):
        super().__init__()
        self.features, self.strides, self.shortcut = features, strides, shortcut
        self.conv = CausalConv(channels, features, strides, strides, modulated)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Maps (B, C, 1 + st·k, H, W) to (B, C', 1 + k, H/s, W/s); a later chunk has st·k frames."""
        st, s, _ = self.strides
        starts = is_start(self.conv, cache)
        y = self.conv(x, cache)
        if not self.shortcut:
            return y
        means = space_to_depth(x, s)
        if st > 1:
            head, tail = (means[:, :, :1], means[:, :, 1:]) if starts else (means[:, :, :0], means)
            tail = tail.unflatten(2, (tail.shape[2] // st, st)).mean(dim=3)
            means = torch.cat([head, tail], dim=2)
        return y + average_channels(means, self.features)


class Upsample(nn.Module):
    """Enlarges space and time by a convolution with a 1x1x1 kernel, plus a copying shortcut.

    The convolution computes st·s·s pixels from each pixel, as channels ordered (st, s, s, C'). Of the frames
    from the first latent frame of a clip only the last is kept.
    """

    def __init__(self, channels: int, features: int, strides: Triple, modulated=False, shortcut=True):
        super().__init__()
        self.phases, self.strides, self.shortcut = math.prod(strides) * features, strides, shortcut
        self.conv = CausalConv(channels, self.phases, (1, 1, 1), modulated=modulated)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Maps (B, C, 1 + k, h, w) to (B, C', 1 + st·k, h·s, w·s); k frames of a later chunk become st·k."""
        st, s, _ = self.strides
        starts = is_start(self.conv, cache)
        last = self.phases // st if starts and x.shape[2] == 1 else self.phases
        y = self.conv(x, cache, last)
        if self.shortcut:
            y = y + average_channels(x, self.phases)[:, -last:]
        if st > 1 and last == self.phases:
            y = y.unflatten(1, (st, -1)).movedim(1, 3).flatten(2, 3)  # (B, s·s·C', T·st, h, w)
            y = y[:, :, st - 1 :] if starts else y
        return depth_to_space(y, s)


class Level(nn.Module):
    """The blocks of one resolution: `down` precedes them in the encoder, `up` follows them in the decoder."""

    def __init__(self, blocks: list[ResidualBlock], down: Downsample | None, up: Upsample | None):
        super().__init__()
        self.down, self.blocks, self.up = down, nn.ModuleList(blocks), up
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, is_video: bool, cache: Cache | None = None) -> Tensor:
        """Maps (B, C, T, H, W) to the resolution and channels of the next level."""
        x = x if self.down is None else self.down(x, cache)
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled() and cache is None:
                x = checkpoint(block, x, is_video, use_reentrant=False)
            else:
                x = block(x, is_video, cache)
        return x if self.up is None else self.up(x, cache)


@dataclass(frozen=True)
class Design:
    """The hyperparameters of the encoder or of the decoder.

    Attributes:
      pixel_channels, latent_channels: channels of pixels and of latents.
      widths: channels of each level, highest resolution first.
      strides: (st, s, s) between each level and the next lower resolution.
      blocks: residual blocks per level.
      stem: 'haar' (wavelet bands) or 'patch' (plain pixels).
      stem_factor: side of the pixel blocks that the stem moves into channels.
      conv: 'smc' (self-modulated convolutions) or 'groupnorm'.
      film, pixel_norm, attention: whether blocks have `Film` and `PixelNorm`, and the lowest resolution
        `FrameAttention`.
      qk_norm: whether `FrameAttention` normalizes queries and keys.
    """

    pixel_channels: int
    latent_channels: int
    widths: tuple[int, ...]
    strides: tuple[Triple, ...]
    blocks: int
    stem: str
    stem_factor: int
    conv: str
    film: bool
    pixel_norm: bool
    attention: bool
    qk_norm: bool

    @property
    def factors(self) -> Triple:
        """(ft, fs, fs): frames, rows and columns of pixels per latent pixel."""
        st, s = (math.prod(strides[axis] for strides in self.strides) for axis in (0, 1))
        return st, s * self.stem_factor, s * self.stem_factor

    def levels(self, is_encoder: bool) -> nn.ModuleList:
        """The levels, highest resolution first."""
        modulated, levels = self.conv == "smc", nn.ModuleList()
        for i, width in enumerate(self.widths):
            down = up = None
            if i and is_encoder:
                down = Downsample(self.widths[i - 1], width, self.strides[i - 1], modulated)
            elif i:
                up = Upsample(width, self.widths[i - 1], self.strides[i - 1], modulated)
            blocks = [ResidualBlock(width, self.conv, self.film, self.pixel_norm) for _ in range(self.blocks)]
            levels.append(Level(blocks, down, up))
        return levels


class Encoder(nn.Module):
    """Maps pixels to means and log-variances; the means are a linear path plus a residual network."""

    def __init__(self, design: Design):
        super().__init__()
        d = self.design = design
        self.linear = Downsample(d.pixel_channels, d.latent_channels, d.factors, shortcut=False)
        self.conv_in = CausalConv(d.pixel_channels * d.stem_factor**2, d.widths[0])
        self.levels = d.levels(is_encoder=True)
        self.attention = FrameAttention(d.widths[-1], d.qk_norm) if d.attention else nn.Identity()
        self.conv_out = CausalConv(d.widths[-1], 2 * d.latent_channels)

    def forward(self, x: Tensor, is_video: bool, cache: Cache | None = None) -> Tensor:
        """Maps pixels (B, C, T, H, W) to float32 means and log-variances (B, 2c, t, h, w)."""
        linear = in_float32(self.linear, x, cache)
        y = space_to_depth(x.float(), self.design.stem_factor)
        if self.design.stem == "haar":
            y = haar(y, self.design.stem_factor)
        y = self.conv_in(y.to(self.conv_in.weight.dtype), cache)
        for level in self.levels:
            y = level(y, is_video, cache)
        mean, logvar = self.conv_out(self.attention(y), cache).float().chunk(2, dim=1)
        return torch.cat([linear + mean, logvar + LOG_VARIANCE_INIT], dim=1)


class Decoder(nn.Module):
    """Maps latents to pixels by a linear path plus a residual network that mirrors the encoder's."""

    def __init__(self, design: Design):
        super().__init__()
        d = self.design = design
        self.linear = Upsample(d.latent_channels, d.pixel_channels, d.factors, shortcut=False)
        self.conv_in = CausalConv(d.latent_channels, d.widths[-1])
        self.attention = FrameAttention(d.widths[-1], d.qk_norm) if d.attention else nn.Identity()
        self.levels = d.levels(is_encoder=False)
        self.conv_out = CausalConv(d.widths[0], d.pixel_channels * d.stem_factor**2)

    def forward(self, z: Tensor, is_video: bool, cache: Cache | None = None) -> Tensor:
        """Maps latents (B, c, t, h, w) to float32 pixels (B, C, T, H, W)."""
        linear = in_float32(self.linear, z, cache)
        y = self.attention(self.conv_in(z.to(self.conv_in.weight.dtype), cache))
        for level in reversed(self.levels):
            y = level(y, is_video, cache)
        y = self.conv_out(y, cache).float()
        if self.design.stem == "haar":
            y = haar(y, self.design.stem_factor, inverse=True)
        return linear + depth_to_space(y, self.design.stem_factor)


class DiagonalGaussian:
    """The posterior over latents: mean, log-variance, standard deviation and variance, (B, c, t, h, w)."""

    def __init__(self, moments: Tensor):
        self.mean, logvar = moments.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        self.std, self.var = torch.exp(0.5 * self.logvar), torch.exp(self.logvar)

    def mode(self) -> Tensor:
        """The mean."""
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draws latents; noise is drawn on the device of the generator."""
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def kl(self) -> Tensor:
        """KL divergence to N(0, 1) of each sample of the batch, in nats, (B,)."""
        return 0.5 * (self.mean.square() + self.var - 1 - self.logvar).flatten(1).sum(dim=1)


EncoderOutput = namedtuple("EncoderOutput", ["latent_dist"])  # a DiagonalGaussian
DecoderOutput = namedtuple("DecoderOutput", ["sample"])  # pixels (B, C, T, H, W)


class Autoencoder(nn.Module):
    """The autoencoder.

    Convolutions compute in the dtype of the parameters, or in that of `torch.autocast`, which loses less. The
    linear paths compute in float32, and the posterior and decoded pixels are always float32.

    Args:
      config: contents of config.json.

    Attributes:
      config: `latents_mean` and `latents_std` of each channel over the training set, or None if unknown;
        `latent_channels`; `scaling_factor`, 1.0; and everything else in config.json.
      spatial_compression_ratio, temporal_compression_ratio: fs and ft.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = SimpleNamespace(**config)
        self.encoder = Encoder(Design(**config["encoder"]))
        self.decoder = Decoder(Design(**config["decoder"]))
        self.temporal_compression_ratio, self.spatial_compression_ratio, _ = self.encoder.design.factors

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, torch_dtype: torch.dtype = torch.float32
    ) -> "Autoencoder":
        """Reads config.json and model.safetensors; the parameters become `torch_dtype`.

        Raises:
          ValueError: if config.json does not describe this model.
          RuntimeError: if the weights have other names or shapes.
        """
        path = pathlib.Path(folder)
        config = json.loads((path / "config.json").read_bytes())
        if config.get("format") != FORMAT:
            raise ValueError(f"{path}: 'format' = {config.get('format')!r}; accepted: {FORMAT!r}")
        with torch.device("meta"):  # the file's tensors become the parameters
            vae = cls(config)
        vae.load_state_dict(load_file(path / "model.safetensors"), assign=True)
        return vae.to(torch_dtype).eval()

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes model.safetensors, config.json and this file, as autoencoder.py."""
        path = pathlib.Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        weights = {name: p.contiguous() for name, p in self.state_dict().items()}
        save_file(weights, path / "model.safetensors", {"format": "pt"})
        (path / "config.json").write_text(json.dumps(vars(self.config), indent=1) + "\n")
        if not (module := path / "autoencoder.py").exists():
            shutil.copyfile(__file__, module)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the parameters."""
        return self.encoder.conv_in.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.encoder.conv_in.weight.device

    def enable_gradient_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the activations of blocks in the backward pass, which saves memory and takes time."""
        for module in self.modules():
            if isinstance(module, Level):
                module.gradient_checkpointing = enable

    def encode(
        self, x: Tensor, return_dict: bool = True, *, cache: Cache | None = None, is_video: bool | None = None
    ) -> EncoderOutput:
        """Encodes a clip, or the next chunk of a stream.

        Args:
          x: pixels (B, C, T, H, W) in [-1, 1], T = 1 + ft·k for a clip or a first chunk, ft·k for a later
            one; H and W are multiples of fs.
          return_dict: without effect; the result is a tuple with names, so `[0]` works as well.
          cache: {} for the first chunk of a stream, and the same dictionary for the later ones. Chunks then
            give the latents of the whole clip.
          is_video: whether FiLM treats x as video; None: if T > 1 or x is part of a stream.

        Returns:
          An `EncoderOutput` whose `latent_dist` is the float32 posterior, (B, c, t, h, w), t = 1 + k, or k
          for a later chunk.
        """
        ft, fs, _ = self.encoder.design.factors
        channels, starts = self.encoder.design.pixel_channels, is_start(self.encoder.conv_in, cache)
        fits = x.dim() == 5 and x.shape[1] == channels and x.is_floating_point() and x.numel() > 0
        if not fits or (x.shape[2] - starts) % ft or x.shape[3] % fs or x.shape[4] % fs:
            frames = f"1 + a multiple of {ft}" if starts else f"a multiple of {ft}"
            raise ValueError(
                f"x is {x.dtype} {tuple(x.shape)}; accepted: float (B, {channels}, T, H, W), T = {frames},"
                f" H and W multiples of {fs}"
            )
        return EncoderOutput(DiagonalGaussian(self.encoder(x, _is_video(x, cache, is_video), cache)))

    def decode(
        self, z: Tensor, return_dict: bool = True, *, cache: Cache | None = None, is_video: bool | None = None
    ) -> DecoderOutput:
        """Decodes latents, or the next chunk of a stream.

        Args:
          z: latents (B, c, t, h, w), not normalized, see `denormalize`; any t.
          return_dict: without effect, as for `encode`.
          cache: the cache of the stream, as for `encode`.
          is_video: as for `encode`.

        Returns:
          A `DecoderOutput` whose `sample` is float32 pixels (B, C, T, H, W), about in [-1, 1] but not
          clipped; T = 1 + ft·(t - 1), or ft·t for a later chunk.
        """
        channels = self.decoder.design.latent_channels
        if z.dim() != 5 or z.shape[1] != channels or not z.is_floating_point() or not z.numel():
            raise ValueError(
                f"z is {z.dtype} {tuple(z.shape)}; accepted: float (B, {channels}, t, h, w), t at least 1"
            )
        return DecoderOutput(self.decoder(z, _is_video(z, cache, is_video), cache))

    def forward(
        self,
        sample: Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> DecoderOutput:
        """Reconstructs pixels (B, C, T, H, W) from the posterior's mean, or from a sample."""
        posterior = self.encode(sample)[0]
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, return_dict)

    def normalize(self, z: Tensor) -> Tensor:
        """(z - mean) / std of each channel: the latents that a diffusion model trains on."""
        mean, std = self._statistics(z.device)
        return (z - mean) / std

    def denormalize(self, z: Tensor) -> Tensor:
        """The inverse of `normalize`: from latents of a diffusion model to those that `decode` takes."""
        mean, std = self._statistics(z.device)
        return z * std + mean

    def _statistics(self, device: torch.device) -> Tensor:
        found = self.config.latents_mean, self.config.latents_std
        if None in found:
            raise ValueError("latents_mean and latents_std are unknown; accepted: a config.json with numbers")
        return torch.tensor(found, device=device).view(2, -1, 1, 1, 1)


def _is_video(x: Tensor, cache: Cache | None, is_video: bool | None) -> bool:
    return x.shape[2] > 1 or cache is not None if is_video is None else is_video


def is_start(conv: CausalConv, cache: Cache | None) -> bool:
    """Whether the next input of a convolution is a clip or the first chunk of a stream."""
    return cache is None or conv not in cache


def in_float32(layer: nn.Module, x: Tensor, cache: Cache | None) -> Tensor:
    """Applies a layer in float32, also inside `torch.autocast`."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float(), cache)


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """Rearranges (B, C, T, H, W) to (B, f·f·C, T, H/f, W/f), f = factor, ordered (row, column, C)."""
    x = x.unflatten(4, (-1, factor)).unflatten(3, (-1, factor))  # B C T h f w f
    return x.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """Rearranges (B, f·f·C, T, h, w) to (B, C, T, h·f, w·f): the inverse of `space_to_depth`."""
    x = x.unflatten(1, (factor, factor, -1))  # B f f C T h w
    return x.permute(0, 3, 4, 5, 1, 6, 2).flatten(5, 6).flatten(3, 4)


def average_channels(x: Tensor, features: int) -> Tensor:
    """Changes the channels of (B, C, T, H, W) to C' = features without parameters (arXiv 2410.10733).

    The channels are repeated up to the least common multiple of C and C'. Channel j of the result is the mean
    of all whose index is j modulo C'.
    """
    x = x.repeat(1, math.lcm(x.shape[1], features) // x.shape[1], 1, 1, 1)
    return x.unflatten(1, (-1, features)).mean(dim=1)


def haar(x: Tensor, factor: int, inverse: bool = False) -> Tensor:
    """Applies the orthonormal Haar transform, or its inverse, to the pixels of blocks of f x f, f = factor.

    Maps (B, f·f·C, T, h, w), channels ordered as by `space_to_depth`, to the same shape, low band first.
    """
    transform = _merge_bands if inverse else _split_bands
    x = x.unflatten(1, (factor, factor, -1))
    return transform(transform(x, 1), 2).flatten(1, 3)


def _split_bands(x: Tensor, dim: int) -> Tensor:
    if x.shape[dim] == 1:
        return x
    a, b = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    return torch.cat([_split_bands((a + b) / math.sqrt(2), dim), (a - b) / math.sqrt(2)], dim)


def _merge_bands(x: Tensor, dim: int) -> Tensor:
    if x.shape[dim] == 1:
        return x
    low, high = x.chunk(2, dim)
    low = _merge_bands(low, dim)
    return torch.stack([low + high, low - high], dim + 1).flatten(dim, dim + 1) / math.sqrt(2)
