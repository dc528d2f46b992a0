"""Published video VAEs in PyTorch, shrunk to the size of vaejax's `tiny`, and a trainer for them.

All have vaejax's latents, 8x in space, 4x in time, 16 channels, and 6.2 to 6.6 million parameters. vaejax's
`tiny` has 6.7 million. Their channels are multiples of 16, as convolutions on CPUs prefer. The trainer does
what vaejax does, in PyTorch's way: the network is compiled, arrays are channels-last, Adam is fused,
gradients are clipped by their norm, and the average of the parameters is evaluated. Requires torch and
diffusers.
"""

import math
import os
from collections.abc import Callable, Mapping

import numpy as np
import torch

Frames = Mapping[str, np.ndarray]
KL = 1e-6  # weight per pixel value, the default of vaejax
CLIP = 1.0  # largest norm of the gradients
BETAS = 0.9, 0.99  # of Adam, as in vaejax
LOG_SCALE_RATE = 10.0  # learning rate of the likelihood's log-scale, relative to the others


def wan() -> torch.nn.Module:
    """Wan 2.1's autoencoder with a sixth of its channels, a quarter in its lowest resolution.

    Training needs its output before diffusers limits it to [-1, 1], where it would have no gradient.
    """
    from diffusers import AutoencoderKLWan
    from diffusers.models.autoencoders.vae import DecoderOutput

    class Unlimited(AutoencoderKLWan):
        def _decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput:
            self.clear_cache()
            latents, frames = self.post_quant_conv(z), []
            for i in range(z.shape[2]):
                self._conv_idx = [0]
                more = {"first_chunk": True} if i == 0 else {}
                cache = {"feat_cache": self._feat_map, "feat_idx": self._conv_idx}
                frames.append(self.decoder(latents[:, :, i : i + 1], **cache, **more))
            self.clear_cache()
            return DecoderOutput(sample=torch.cat(frames, 2))

    return Unlimited(base_dim=16, z_dim=16, dim_mult=[1, 2, 4, 6])


def cogvideox() -> torch.nn.Module:
    """CogVideoX's autoencoder."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(32, 32, 64, 96),
        layers_per_block=2,
        latent_channels=16,
        norm_num_groups=16,
    )


def hunyuan() -> torch.nn.Module:
    """HunyuanVideo's autoencoder, which is that of Stable Diffusion with causal 3D convolutions."""
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo(
        block_out_channels=(32, 48, 96, 96), layers_per_block=1, latent_channels=16, norm_num_groups=16
    )


PEERS: dict[str, Callable[[], torch.nn.Module]] = {
    "Wan 2.1": wan,
    "CogVideoX": cogvideox,
    "HunyuanVideo": hunyuan,
}


class Trainer:
    """Trains a peer with a Gaussian likelihood.

    Args:
      name: one of PEERS.
      learning_rate: peak learning rate; a cosine lowers it to 2% of the peak.
      steps: updates of the whole run.
      warmup: updates in which the learning rate rises.
      ema_decay: decay of the average of the parameters.
    """

    def __init__(
        self, name: str, learning_rate: float, steps: int, warmup: int = 30, ema_decay: float = 0.98
    ):
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA's thread pool has
        torch.manual_seed(0)
        self.model = PEERS[name]()
        for kind, order in (
            (torch.nn.Conv3d, torch.channels_last_3d),
            (torch.nn.Conv2d, torch.channels_last),
        ):
            for layer in self.model.modules():
                if isinstance(layer, kind):
                    layer.to(memory_format=order)
        self.model.encoder = torch.compile(self.model.encoder, dynamic=False)
        self.model.decoder = torch.compile(self.model.decoder, dynamic=False)
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.params = [*self.model.parameters(), self.log_scale]
        self.average = [p.detach().clone() for p in self.params]
        groups = [
            {"params": list(self.model.parameters()), "lr": learning_rate},
            {"params": [self.log_scale], "lr": LOG_SCALE_RATE * learning_rate},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, fused=True)

        def rate(step: int) -> float:
            if step < warmup:
                return step / warmup
            done = min(1.0, (step - warmup) / max(1, steps - warmup))
            return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)
        self.ema_decay, self.step = ema_decay, 0

    def loss(self, frames: np.ndarray) -> torch.Tensor:
        """The negative log-likelihood plus the weighted KL divergence, per pixel value."""
        x = _pixels(frames)
        posterior = self.model.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn_like(posterior.mean)
        x_hat = self.model.decode(z).sample
        error = (x_hat - x) * torch.exp(-self.log_scale)
        nll = 0.5 * error.square().mean() + self.log_scale + 0.5 * math.log(2 * math.pi)
        variance = posterior.logvar.exp()
        kl = 0.5 * (posterior.mean.square() + variance - 1 - posterior.logvar).sum() / x.numel()
        return nll + KL * kl

    def update(self, batches: Frames) -> None:
        """Updates the parameters by the gradients of one batch of each bucket."""
        self.optimizer.zero_grad()
        for frames in batches.values():
            self.loss(frames).backward()
        torch.nn.utils.clip_grad_norm_(self.params, CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        with torch.no_grad():
            # Early averages follow the parameters closely, as those of vaejax do.
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            torch._foreach_lerp_(self.average, self.params, 1 - decay)

    def flops(self, batches: Frames) -> int:
        """The FLOPs of the forward and backward passes of an update, as PyTorch counts them."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
            for frames in batches.values():
                self.loss(frames).backward()
        self.optimizer.zero_grad()
        return counter.get_total_flops()

    @torch.inference_mode()
    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Reconstructs uint8 frames (B, T, H, W, 3) with the averaged parameters and without noise."""
        kept = [p.detach().clone() for p in self.params]
        for p, average in zip(self.params, self.average, strict=True):
            p.copy_(average)
        with torch.compiler.set_stance("force_eager"):  # compiling for a few calls would take longer
            x_hat = self.model.decode(self.model.encode(_pixels(frames)).latent_dist.mean).sample
        for p, own in zip(self.params, kept, strict=True):
            p.copy_(own)
        return ((x_hat.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).numpy()


def _pixels(frames: np.ndarray) -> torch.Tensor:
    """Maps uint8 (B, T, H, W, 3) to float32 (B, 3, T, H, W) in [-1, 1], channels-last."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).float() / 127.5 - 1
    return x.permute(0, 4, 1, 2, 3).contiguous(memory_format=torch.channels_last_3d)
