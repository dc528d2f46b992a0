"""The end of a run: latent statistics and the summary on the console."""

import jax

from vaejax.config import Config
from vaejax.evaluate import latent_statistics
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.rundir import latent_statistics as stored_statistics
from vaejax.rundir.console import duration
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.verdict import Verdict
from vaejax.runtime import distributed
from vaejax.train.setup import Setup


def keep_latent_statistics(setup: Setup, folder: RunFolder, ema: dict) -> None:
    """Computes and stores channel statistics of the training latents, for normalization by diffusion models.

    Does nothing if eval.latent_samples is 0, or if a frozen encoder inherits its statistics.

    Args:
      setup: setup of the run.
      folder: folder of the run; its last checkpoint must be complete.
      ema: EMA parameters of the autoencoder.
    """
    config = setup.config
    if _missing(config, folder, config.steps):
        count = config.eval.latent_samples
        distributed.say(f"computing the latent statistics of {count} training samples of each bucket ...")
        codec = VaeCodec("run", setup.programs.model, ema, mesh=setup.mesh)
        latent_statistics.keep(codec, setup.sources, setup.buckets, config, folder.path, config.steps)


def complete(setup: Setup, folder: RunFolder, step: int) -> None:
    """Computes the latent statistics of a finished run if they are missing, e.g. because the run was killed.

    Does nothing if eval.latent_samples is 0.
    """
    if _missing(setup.config, folder, step):
        latent_statistics.of_run(VaeCodec.open(str(folder.path), step), str(folder.path), step)


def _missing(config: Config, folder: RunFolder, step: int) -> bool:
    """Whether statistics are wanted and any process lacks them."""
    missing = bool(config.eval.latent_samples) and stored_statistics.load(folder.path, step) is None
    return any(distributed.all_gather(missing))


def last_words(
    folder: RunFolder,
    config: Config,
    start: int,
    scores: dict[str, float],
    verdict: Verdict | None,
    seconds: float,
) -> str:
    """The summary of a finished run: updates since `start`, time, scores, alarms, and what to do next."""
    updates = f"updates {start + 1} to {config.steps}" if start else f"{config.steps} updates"
    lines = [f"done: {updates} in {duration(seconds)} on {jax.device_count()} device(s)"]
    names = {key.partition("/")[0]: None for key in scores if key.endswith("/psnr")}
    for bucket in names:
        if bucket == "mean":
            continue
        psnr, linear = scores[f"{bucket}/psnr"], scores.get(f"{bucket}/psnr_linear")
        line = f"  {bucket:20} psnr {psnr:.2f} dB"
        if linear is not None:
            line += f" ({psnr - linear:+.2f} dB vs linear codec)"
        if (lpips := scores.get(f"{bucket}/lpips_alexnet")) is not None:
            line += f"  lpips {lpips:.3f}"
        lines.append(line)
    lines += verdict.lines() if verdict else []
    lines.append(f"look at: {folder.name}/panels/{config.steps}")
    lines.append(f"next: python -m vaejax.evaluate --checkpoint={folder.name} --out={folder.name}/evaluation")
    return "\n".join(lines)
