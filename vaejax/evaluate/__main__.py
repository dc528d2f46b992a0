"""The command python -m vaejax.evaluate --checkpoint=DIR --data=FOLDER --out=OUT.

It writes OUT/results.json, with the sample count, 95% interval and settings of every score, and
OUT/report.html, a self-contained page.
"""

import sys

from vaejax import cli
from vaejax.evaluate.codecs import NAMES


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.evaluate",
        "Scores codecs on photos and clips. Writes OUT/results.json and OUT/report.html. Without --data,"
        " the samples are the held-out part of the run's data.",
        "--checkpoint runs/demo --data ~/Videos --out evaluation --compare linear jpeg:matched h264:23",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="PATH",
        default="",
        help="a run, RUN/checkpoints/STEP, an export or a published VAE (default: only --compare)",
    )
    parser.add_argument(
        "--compare",
        metavar="CODEC",
        nargs="+",
        default=[],
        help=f"further codecs to score: {NAMES} (default: none)",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER|tfds:NAME",
        default="",
        help="photos and clips; each is used once, cropped from the middle (default: the run's holdout)",
    )
    parser.add_argument("--out", metavar="OUT", required=True, help="output folder")
    parser.add_argument(
        "--buckets",
        metavar="NAME",
        nargs="+",
        default=[],
        help="sample shapes, e.g. image_256x256 video_17x256x256 (default: those of the run or export)",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=cli.at_least(1),
        default=0,
        help="maximum number of samples per bucket (default: all of --data, or the run's eval.samples)",
    )
    parser.add_argument(
        "--fps",
        type=cli.at_least(1e-3, float),
        default=0.0,
        help="frames per second of clips (default: that of the run or export, else 24)",
    )
    parser.add_argument(
        "--batch",
        metavar="N",
        type=cli.at_least(1),
        default=8,
        help="samples per batch; affects memory and speed, not scores (default: 8)",
    )
    parser.add_argument(
        "--seed",
        type=cli.at_least(0),
        default=0,
        help="seed of bootstrap intervals, and of random weights and noise of diffusers codecs (default: 0)",
    )
    parser.add_argument(
        "--inception",
        metavar="FILE",
        default="",
        help="pytorch-fid's pt_inception-2015-12-05-6726825d.pth; adds standard rFID (default: none)",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        from vaejax.evaluate import command  # here, because --help needs no JAX

        command.run(options)

    return cli.run(work, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
