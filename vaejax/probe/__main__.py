"""Scores a codec's latents by what a small diffusion transformer learns on them in a fixed budget.

    python -m vaejax.probe --checkpoint=runs/demo --data=FOLDER --out=OUT

Leaves OUT/probe.json, the score and what stands beside it (see vaejax/evaluation/probe/score.py), and
OUT/samples.png to look at.
"""

import argparse
import dataclasses
import sys
import time
from typing import Any

import jax
import numpy as np
from PIL import Image

from vaejax import __version__, cli, files
from vaejax.errors import InputError
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.features import Features
from vaejax.networks import weights
from vaejax.probe.grid import grid
from vaejax.probe.presets import PRESETS, Preset
from vaejax.probe.samples import open_media
from vaejax.probe.score import Probe
from vaejax.runtime import cache


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    chosen = _parser().parse_args(arguments)

    def work() -> None:
        out = cli.made_folder(chosen.out)
        cache.keep_compiled()
        found, shown = probe(chosen)
        with cli.writing(chosen.out):
            files.write_json(out / "probe.json", found)
            Image.fromarray(grid(shown)).save(out / "samples.png")
        print(summary(found))
        print(f"{out / 'probe.json'}, {out / 'samples.png'}: {found['time']['seconds']:.0f} s")

    return cli.run(work, "stopped; nothing was written")


def probe(chosen: argparse.Namespace) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What probe.json holds, and samples of each kind, (N, T, H, W, 3) uint8.

    Raises:
      InputError: in one line, for a flag or a file that cannot be used.
    """
    begin = time.monotonic()
    preset = budget(chosen)
    media = open_media(chosen.data, preset, chosen.labels)
    frames = (frames for frames, _ in media.batches("train", preset.train_samples))
    codec = open_codec(chosen.checkpoint, step=chosen.step, samples=frames, fps=preset.fps)
    try:
        judge = Probe(media, preset, Features(chosen.inception), bool(chosen.inception), progress=True)
    except weights.BadWeights as error:
        raise InputError(f"features: {error}; accepted: the network's weights") from error
    latents = judge.latents(codec)
    scores, shown = judge.score(latents, codec.decode, range(chosen.seeds))
    settings = {
        "checkpoint": chosen.checkpoint,
        "codec": codec.settings,
        "latent_shape": latents.train.shape[1:],
        "data": chosen.data,
        "classes": media.classes,
        "preset": chosen.preset,
        "budget": dataclasses.asdict(preset),
        "features": judge.network,
        "versions": {"vaejax": __version__, "jax": jax.__version__, "numpy": np.__version__},
    }
    return scores | {"settings": settings, "time": {"seconds": time.monotonic() - begin}}, shown


def budget(chosen: argparse.Namespace) -> Preset:
    """The preset, with the fields that flags change; InputError where that makes no budget."""
    fields = [field.name for field in dataclasses.fields(Preset)]
    changes = {name: getattr(chosen, name) for name in fields if getattr(chosen, name) is not None}
    return dataclasses.replace(PRESETS[chosen.preset], **changes)


def summary(scores: dict) -> str:
    """The scores for people, a line each."""
    count, floor = len(scores["kernel"]["seeds"]), scores["floor"]

    def told(name: str, digits: int) -> str:
        one = scores[name]
        return f"{one['mean']:.{digits}f} ± {one['spread']:.{digits}f}"

    return "\n".join(
        [
            f"score: kernel distance {told('kernel', 4)} over {count} seeds"
            f" (a perfect model of these latents: {floor['kernel']:.4f}); lower is better",
            f"Fréchet distance {told('frechet', 2)} (a perfect model: {floor['frechet']:.2f})",
            f"held-out flow-matching loss {told('loss', 4)}, of which nothing learned leaves"
            f" {scores['white_loss']:.4f}: explained {told('explained', 4)}",
        ]
    )


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "vaejax.probe",
        "Trains a small diffusion transformer on the latents of a codec for a fixed budget and compares what"
        " it generates with real samples. Compare codecs at one budget on one set of media only.",
        "--checkpoint=runs/demo --data=~/Pictures --preset=cpu --out=runs/demo/probe",
    )
    parser.add_argument("--checkpoint", metavar="NAME", required=True, help="a run's folder or another codec")
    parser.add_argument("--data", metavar="FOLDER", required=True, help="photos and clips, or tfds:NAME")
    parser.add_argument("--out", metavar="DIR", required=True, help="where probe.json and samples.png go")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="the budget (default: cpu)")
    parser.add_argument("--seeds", type=cli.at_least(1), default=3, metavar="N", help="fits (default: 3)")
    parser.add_argument("--step", type=int, metavar="N", help="of the run's checkpoint (default: the last)")
    parser.add_argument("--inception", metavar="FILE", default="", help="weights of FID's network: adds fid")
    parser.add_argument("--labels", action="store_true", help="the folders in FOLDER are classes")
    changes = parser.add_argument_group("changes of the budget")
    for field in dataclasses.fields(Preset):
        flag = f"--{field.name.replace('_', '-')}"
        kinds = {int: cli.at_least(1), float: cli.at_least(0, float), str: str}
        changes.add_argument(flag, type=kinds[field.type], metavar="X", help=field.metadata.get("help"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
