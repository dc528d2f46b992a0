"""The command python -m vaejax.probe --checkpoint=runs/demo --data=FOLDER --out=OUT.

It trains a small diffusion transformer on the latents of a codec in a fixed budget. It writes OUT/probe.json,
the scores (see vaejax/probe/score.py) and their settings, and OUT/samples.png, a picture of samples.
"""

import argparse
import dataclasses
import pathlib
import shlex
import sys
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from vaejax import __version__, cli, files
from vaejax.codec.load import read_export_config
from vaejax.errors import InputError
from vaejax.evaluate.codecs.registry import NAMES, open_codec
from vaejax.evaluate.features import Features
from vaejax.networks import weights
from vaejax.probe.presets import PRESETS, Preset
from vaejax.probe.samples import open_media
from vaejax.probe.score import Probe
from vaejax.rundir.console import duration
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.panels import sample_grid
from vaejax.runtime import cache


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        out = cli.made_folder(options.out)
        cache.keep_compiled()
        results, shown = probe(options)
        with cli.writing(options.out):
            files.write_json(out / "probe.json", results)
            Image.fromarray(sample_grid(shown)).save(out / "samples.png")
        print(summary(results))
        print(f"look at: {out / 'samples.png'}\nscores: {out / 'probe.json'}")
        print(f"next: {_next_command(options, results['settings'])}")

    return cli.run(work, "stopped; nothing was written")


def probe(options: argparse.Namespace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores a codec.

    Returns:
      The contents of probe.json, and samples of each kind, (N, T, H, W, 3) uint8; see `Probe.score`.

    Raises:
      InputError: if a flag or a file cannot be used.
    """
    begin = time.monotonic()
    preset = budget(options)
    media = open_media(options.data, preset, options.labels)
    frames = (frames for frames, _ in media.batches("train", preset.train_samples))
    codec = open_codec(options.checkpoint, step=options.step, samples=frames, fps=preset.fps)
    try:
        probe = Probe(media, preset, Features(options.inception), bool(options.inception), progress=True)
    except weights.BadWeights as error:
        raise InputError(f"features: {error}; accepted: the network's weights") from error
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
    """The preset with the fields that flags replace; InputError if a field is invalid."""
    fields = [field.name for field in dataclasses.fields(Preset)]
    changes = {name: getattr(options, name) for name in fields if getattr(options, name) is not None}
    return dataclasses.replace(PRESETS[options.preset], **changes)


def summary(results: dict[str, Any]) -> str:
    """The scores in four lines."""
    settings, floor, seeds = results["settings"], results["floor"], len(results["kernel"]["seeds"])
    fits = f"{seeds} seed{'s' if seeds > 1 else ''}"
    seconds = duration(results["time"]["seconds"])
    lines = [
        f"done: probed {settings['checkpoint']} in {seconds}: {fits} of preset {settings['preset']}",
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
    """The export of a run; the evaluation of any other codec."""
    name = options.checkpoint
    if settings["codec"].get("kind") == "vaejax" and read_export_config(name) is None:
        out = pathlib.Path("exports") / RunFolder(name).path.name
        step = [f"--step={options.step}"] if options.step is not None else []
        return shlex.join(["python", "-m", "vaejax.export", name, str(out), *step])
    bucket, out = settings["budget"]["bucket"], str(pathlib.Path(options.out) / "evaluation")
    command = ["python", "-m", "vaejax.evaluate", "--compare", name, f"--data={options.data}"]
    return shlex.join([*command, "--buckets", bucket, f"--out={out}"])


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "vaejax.probe",
        "Trains a small diffusion transformer on the latents of a codec in a fixed budget and compares the"
        " samples it generates with real ones. Scores are comparable only with the same budget and media.",
        "--checkpoint=runs/demo --data=~/Pictures --preset=cpu --out=runs/demo/probe",
    )
    parser.add_argument("--checkpoint", metavar="NAME", required=True, help=f"the codec: {NAMES}")
    parser.add_argument(
        "--data", metavar="FOLDER", required=True, help="FOLDER[,FOLDER] of photos and clips, or tfds:NAME"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for probe.json and samples.png")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="the budget (default: cpu)")
    parser.add_argument(
        "--seeds", type=cli.at_least(1), default=3, metavar="N", help="number of fits (default: 3)"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="a completed checkpoint of the run (default: the latest)"
    )
    parser.add_argument("--inception", metavar="FILE", default="", help="FID's Inception weights; adds FID")
    parser.add_argument("--labels", action="store_true", help="the folders in FOLDER are classes")
    changes = parser.add_argument_group("budget", "Each flag replaces a setting of the preset.")
    for field in dataclasses.fields(Preset):
        flag = f"--{field.name.replace('_', '-')}"
        kinds = {int: cli.at_least(1), float: cli.at_least(0, float), str: str}
        changes.add_argument(flag, type=kinds[field.type], metavar="X", help=field.metadata["help"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
