"""The command python -m vaejax.probe --checkpoint=runs/demo --data=FOLDER --out=OUT.

It trains a small diffusion transformer on the latents of a codec within a fixed budget. It writes the scores
(see vaejax/probe/score.py) and their settings to OUT/probe.json, and a picture of samples to OUT/samples.png.
"""

import argparse
import dataclasses
import sys

from vaejax import cli
from vaejax.probe.presets import PRESETS, Preset


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        from vaejax.probe import command  # here, because --help needs no JAX

        command.run(options)

    return cli.run(work, "stopped; nothing was written")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "vaejax.probe",
        "Trains a small diffusion transformer on the latents of a codec within a fixed budget and compares"
        " its samples with real ones. Scores are comparable only with the same budget and media.",
        "--checkpoint=runs/demo --data=~/Pictures --preset=cpu --out=runs/demo/probe",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        required=True,
        help="the codec: folder of a run or export, diffusers:CLASS:PATH, or linear",
    )
    parser.add_argument(
        "--data", metavar="FOLDER", required=True, help="FOLDER[,FOLDER] of photos and clips, or tfds:NAME"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for probe.json and samples.png")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="cpu",
        help="the budget: cpu takes minutes on a CPU, gpu is for a GPU, standard for ImageNet (default: cpu)",
    )
    parser.add_argument(
        "--seeds", type=cli.at_least(1), default=3, metavar="N", help="number of models to train (default: 3)"
    )
    parser.add_argument(
        "--step",
        type=int,
        metavar="N",
        help="step of the run's checkpoint (default: the step in NAME, else the latest)",
    )
    parser.add_argument(
        "--inception",
        metavar="FILE",
        default="",
        help="pytorch-fid's pt_inception-2015-12-05-6726825d.pth; adds FID (default: none)",
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="use the subfolders of FOLDER as classes (default: no classes)",
    )
    changes = parser.add_argument_group("budget", "Each flag overrides a default of the preset.")
    for field in dataclasses.fields(Preset):
        flag = f"--{field.name.replace('_', '-')}"
        kinds = {int: cli.at_least(1), float: cli.at_least(0, float), str: str}
        values = ", ".join(f"{name} {getattr(preset, field.name)}" for name, preset in PRESETS.items())
        text = f"{field.metadata['help']} ({values})"
        changes.add_argument(flag, type=kinds[field.type], metavar="X", help=text)
    return parser


if __name__ == "__main__":
    sys.exit(main())
