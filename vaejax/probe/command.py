"""Runs python -m vaejax.probe once its arguments are parsed."""

import argparse
import dataclasses
import pathlib
import shlex
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from vaejax import __version__, cli, files
from vaejax.codec.load import is_run
from vaejax.errors import InputError
from vaejax.evaluate.codecs.registry import open_codec, pixel_channels
from vaejax.evaluate.features import Features
from vaejax.networks import weights
from vaejax.probe.presets import PRESETS, Preset
from vaejax.probe.samples import open_media
from vaejax.probe.score import Probe
from vaejax.rundir.console import duration
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.panels import sample_grid
from vaejax.runtime import cache, storage


def run(options: argparse.Namespace) -> None:
    """Probes a codec, writes probe.json and samples.png, and prints the scores.

    Raises:
      InputError: if a flag or a file cannot be used.
    """
    if not storage.is_url(options.out):
        cli.made_folder(options.out)
    cache.keep_compiled()
    results, shown = probe(options)
    with cli.writing(options.out), storage.staged(options.out) as out:
        out.mkdir(exist_ok=True)
        files.write_json(out / "probe.json", results)
        Image.fromarray(sample_grid(shown)).save(out / "samples.png")
    print(summary(results))
    samples, scores = (storage.join(options.out, name) for name in ("samples.png", "probe.json"))
    print(f"look at: {samples}\nscores: {scores}")
    print(f"next: {_next_command(options, results['settings'])}")


def probe(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores a codec.

    Returns:
      The contents of probe.json, and samples of each kind, (N, T, H, W, C) uint8; see `Probe.score`.

    Raises:
      InputError: if a flag or a file cannot be used.
    """
    begin = time.monotonic()
    preset = budget(options)
    media = open_media(options.data, preset, options.labels, pixel_channels(options.checkpoint))
    frames = (frames for frames, _ in media.batches("train", preset.train_samples))
    codec = open_codec(options.checkpoint, step=options.step, samples=frames, fps=preset.fps)
    try:
        probe = Probe(media, preset, Features(options.inception), bool(options.inception), progress=True)
    except weights.BadWeights as error:
        raise InputError(
            f"Inception weights: {error}; accepted: an intact package (reinstall it), or --inception with"
            " pytorch-fid's pt_inception-2015-12-05-6726825d.pth"
        ) from error
    latents = probe.latents(codec)
    scores, shown = probe.score(latents, codec.decode, range(options.seeds))
    settings = {
        "checkpoint": options.checkpoint,
        "codec": codec.settings,
        "latent_shape": latents.train.shape[1:],
        "data": options.data,
        "classes": media.classes,
        "preset": options.preset,
        "budget": dataclasses.asdict(preset),
        "features": probe.network,
        "versions": {"vaejax": __version__, "jax": jax.__version__, "numpy": np.__version__},
    }
    return scores | {"settings": settings, "time": {"seconds": time.monotonic() - begin}}, shown


def budget(options: argparse.Namespace) -> Preset:
    """The preset, with the fields that flags override; raises InputError if a field is invalid."""
    fields = [field.name for field in dataclasses.fields(Preset)]
    changes = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    return dataclasses.replace(PRESETS[options.preset], **changes)


def summary(results: dict[str, Any]) -> str:
    """The scores as lines for the console."""
    settings, floor, seeds = results["settings"], results["floor"], len(results["kernel"]["seeds"])
    fits = f"{seeds} seeds" if seeds > 1 else "1 seed (one seed has no spread)"
    seconds = duration(results["time"]["seconds"])
    lines = [
        f"done: probed {settings['checkpoint']} in {seconds}: preset {settings['preset']}, {fits}",
        f"  kernel distance   {mean_and_spread(results['kernel'], 4)} (lower is better;"
        f" decoded training latents: {floor['kernel']:.4f})",
        f"  Fréchet distance  {mean_and_spread(results['frechet'], 2)}"
        f" (decoded training latents: {floor['frechet']:.2f})",
        f"  held-out loss     {mean_and_spread(results['loss'], 4)} (without learning:"
        f" {results['white_loss']:.4f}; explained: {mean_and_spread(results['explained'], 4)})",
    ]
    if "fid" in results:
        fid = f"  FID               {mean_and_spread(results['fid'], 2)}"
        lines.insert(3, f"{fid} (decoded training latents: {floor['fid']:.2f})")
    return "\n".join(lines)


def mean_and_spread(score: dict[str, Any], digits: int) -> str:
    """'MEAN ± SPREAD', or 'MEAN' if there is one seed."""
    mean = f"{score['mean']:.{digits}f}"
    return f"{mean} ± {score['spread']:.{digits}f}" if len(score["seeds"]) > 1 else mean


def _next_command(options: argparse.Namespace, settings: dict[str, Any]) -> str:
    """The command to run next: the export of a run, or the evaluation of any other codec."""
    name = options.checkpoint
    if settings["codec"].get("kind") == "vaejax" and is_run(name):
        out = pathlib.Path("exports") / RunFolder(name).path.name
        step = [f"--step={options.step}"] if options.step is not None else []
        return shlex.join(["python", "-m", "vaejax.export", name, str(out), *step])
    bucket, out = settings["budget"]["bucket"], storage.join(options.out, "evaluation")
    command = ["python", "-m", "vaejax.evaluate", "--compare", name, f"--data={options.data}"]
    return shlex.join([*command, "--buckets", bucket, f"--out={out}"])
