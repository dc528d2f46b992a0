"""Scores of one batch of held-out samples: what the posterior's mean decodes to."""

import jax
import jax.numpy as jnp

from vaejax.evaluation import metrics
from vaejax.models.autoencoder import Autoencoder
from vaejax.objective import Objective

Scores = dict[str, jax.Array]


def score(
    params: dict, frames: jax.Array, *, model: Autoencoder, objective: Objective, shown: int
) -> tuple[Scores, dict[str, jax.Array], jax.Array]:
    """Reconstructs a batch from the mean of the posterior and scores it.

    Args:
      params: {'autoencoder', 'likelihood'}.
      frames: (B, T, H, W, C) uint8.
      model: the autoencoder.
      objective: whose terms are reported.
      shown: how many reconstructions to return.

    Returns:
      {'psnr', 'ssim', 'nll', 'kl'}, each (B,), PSNR in dB and SSIM averaged over frames, of the
      reconstruction clipped to [-1, 1];
      activation spreads, each (): maximum over median of the pixels' L2 norms by level, the spot alarm;
      the first reconstructions, (shown, T, H, W, C) uint8.
    """
    x = frames.astype(jnp.float32) / 127.5 - 1
    variables = {"params": params["autoencoder"]}
    posterior, encoder = model.apply(variables, x, method="encode", mutable="activations")
    x_hat, decoder = model.apply(
        variables, posterior.mean, x.shape[1] > 1, method="decode", mutable="activations"
    )
    terms = objective.terms(x, x_hat, posterior, params["likelihood"]["log_scale"])
    x_hat = jnp.clip(x_hat, -1, 1)
    psnr = jnp.minimum(metrics.psnr(x, x_hat), metrics.PSNR_CEILING)
    scores = {"psnr": psnr.mean(1), "ssim": metrics.ssim(x, x_hat).mean(1), **terms}
    norms = encoder["activations"] | decoder["activations"]
    spreads = {
        f"spread_{half}_{level}": metrics.activation_spread(norm[..., None])
        for half, levels in norms.items()
        for level, norm in levels.items()
    }
    return scores, spreads, jnp.round((x_hat[:shown] + 1) * 127.5).astype(jnp.uint8)
