"""Scores of one batch of held-out samples: what the posterior's mean decodes to."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.evaluate import metrics
from vaejax.losses.objective import Objective
from vaejax.models.autoencoder import Autoencoder
from vaejax.networks import lpips as perceptual

Scores = dict[str, jax.Array]


# The names that a run can follow; 'psnr_raw' is 'psnr' of the parameters that are not averaged.
SCORES = ("psnr", "psnr_raw", "ssim", "nll", "kl", "spots", "flicker", "lpips_alexnet", "lpips_vgg16")
LPIPS_FRAMES = 8  # of a clip, evenly spaced


def score(
    params: dict,
    lpips_params: Mapping[str, dict],
    frames: jax.Array,
    *,
    model: Autoencoder,
    objective: Objective,
    shown: int,
) -> tuple[Scores, dict[str, jax.Array], jax.Array]:
    """Reconstructs a batch from the mean of the posterior and scores it.

    Args:
      params: {'autoencoder', 'likelihood'}.
      lpips_params: by network, of those that LPIPS is told of.
      frames: (B, T, H, W, C) uint8.
      model: the autoencoder.
      objective: whose terms are reported.
      shown: how many reconstructions to return.

    Returns:
      {'psnr', 'ssim', 'nll', 'kl', 'spots', 'lpips_NETWORK'}, of clips 'flicker' too, each (B,), PSNR in dB,
      SSIM, spots and LPIPS averaged over frames (LPIPS over LPIPS_FRAMES of them), of the reconstruction
      clipped to [-1, 1];
      activation spreads, each (): maximum over median of the pixels' L2 norms by level, the spot alarm;
      the first reconstructions, (shown, T, H, W, C) uint8.
    """
    x = frames.astype(jnp.float32) / 127.5 - 1
    variables = {"params": params["autoencoder"]}
    posterior, encoder = model.apply(variables, x, method="encode", mutable="activations")
    x_hat, decoder = model.apply(
        variables, posterior.mean, x.shape[1] > 1, method="decode", mutable="activations"
    )
    terms = objective.likelihood_terms(x, x_hat, posterior, params["likelihood"]["log_scale"])
    x_hat = jnp.clip(x_hat, -1, 1)
    psnr = jnp.minimum(metrics.psnr(x, x_hat), metrics.PSNR_CEILING)
    scores = {name: getattr(metrics, name)(x, x_hat).mean(1) for name in ("ssim", "spots")}
    scores |= {"psnr": psnr.mean(1), **terms}
    if x.shape[1] > 1:
        scores["flicker"] = metrics.flicker(x, x_hat)
    if min(x.shape[2:4]) >= perceptual.SMALLEST:
        seen = np.linspace(0, x.shape[1] - 1, min(x.shape[1], LPIPS_FRAMES)).round().astype(int)
        pairs = [y[:, seen].reshape(-1, *y.shape[2:]) for y in (x, x_hat)]
        for network, weights in lpips_params.items():
            distances = perceptual.lpips(weights, *pairs, network)
            scores[f"lpips_{network}"] = distances.reshape(len(x), -1).mean(1)
    norms = encoder["activations"] | decoder["activations"]
    spreads = {
        f"spread_{half}_{level}": metrics.activation_spread(norm[..., None])
        for half, levels in norms.items()
        for level, norm in levels.items()
    }
    return scores, spreads, jnp.round((x_hat[:shown] + 1) * 127.5).astype(jnp.uint8)
