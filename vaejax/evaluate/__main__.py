"""The command python -m vaejax.evaluate --checkpoint=DIR --data=FOLDER --out=OUT.

It writes OUT/results.json, every score with its number of samples, 95% interval and settings, and
OUT/report.html, a self-contained page.
"""

import argparse
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

from vaejax import cli, files
from vaejax.errors import InputError
from vaejax.evaluate import evaluation, html_report
from vaejax.evaluate.codecs.registry import NAMES
from vaejax.runtime import cache

# Scores on the console: key, heading with the unit, digits.
_SHOWN = (
    ("psnr", "PSNR dB", 2),
    ("ssim", "SSIM", 4),
    ("lpips_alexnet", "LPIPS", 4),
    ("kid_efficientnet", "KID", 5),
    ("rfvd_i3d", "rFVD", 2),
    ("bits_per_pixel", "bits per pixel", 3),
)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.evaluate",
        "Scores codecs on photos and clips. Writes OUT/results.json and OUT/report.html. Without --data, it"
        " scores the held-out part of the run's data.",
        "--checkpoint runs/demo --data ~/Videos --out evaluation --compare linear jpeg:matched h264:23",
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR", default="", help="a run, its checkpoints/STEP, or an export"
    )
    parser.add_argument(
        "--compare", metavar="CODEC", nargs="+", default=[], help=f"other codecs in the same tables: {NAMES}"
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER|tfds:NAME",
        default="",
        help="photos and clips; each is used once, cropped from the middle (default: held out by the run)",
    )
    parser.add_argument("--out", metavar="OUT", required=True, help="output folder")
    parser.add_argument(
        "--buckets",
        metavar="NAME",
        nargs="+",
        default=[],
        help="e.g. image_256x256 video_17x256x256 (default: those of the run or export)",
    )
    parser.add_argument(
        "--samples",
        metavar="N",
        type=cli.at_least(1),
        default=0,
        help="maximum number per bucket (default: all of --data, or as many as the run evaluates)",
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
        help="seed of the bootstrap intervals and of random weights (default: 0)",
    )
    parser.add_argument(
        "--inception", metavar="FILE", default="", help="FID's Inception weights; adds the standard rFID"
    )
    options = parser.parse_args(arguments)
    return cli.run(lambda: _command(options), "stopped; nothing was written")


def _command(options: argparse.Namespace) -> None:
    names = [options.checkpoint] * bool(options.checkpoint) + options.compare
    if not names:
        raise InputError("--checkpoint or --compare is needed: --checkpoint=DIR --data=FOLDER --out=OUT")
    out = cli.made_folder(options.out)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs how it opens checkpoints
    cache.keep_compiled()
    results, shown = evaluation.evaluate(
        names,
        options.data,
        options.buckets,
        options.samples,
        options.fps,
        options.batch,
        options.seed,
        options.inception,
    )
    with cli.writing(options.out):
        files.write_json(out / "results.json", results)
        html_report.write(out / "report.html", results, shown)
    print(summary(results))
    print(f"report: {out / 'report.html'}\nscores: {out / 'results.json'}")


def summary(results: Mapping[str, Any]) -> str:
    """The main scores with 95% intervals, one table per bucket, and the time that the evaluation took."""
    lines = []
    total = 0
    for bucket in results["buckets"]:
        scored = results["results"][bucket]
        samples = max(one["samples"] for one in scored.values())
        total += samples
        columns = [column for column in _SHOWN if any(column[0] in one["scores"] for one in scored.values())]
        rows = [["", *(heading for _, heading, _ in columns)]]
        for codec in results["codecs"]:
            scores = scored[codec]["scores"]
            cells = [_cell(scores.get(key), digits) for key, _, digits in columns]
            rows.append([html_report.short(codec), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines.append(f"{bucket}, n = {samples}, scores [95% interval]")
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            lines.append(("  " + "  ".join(cells)).rstrip())
    count = len(results["codecs"])
    lines.append(
        f"evaluated {count} {'codec' if count == 1 else 'codecs'} on {total} samples"
        f" in {results['time']['seconds']:.0f} s"
    )
    return "\n".join(lines)


def _cell(score: Mapping[str, float] | None, digits: int) -> str:
    """'VALUE [LOW, HIGH]', or 'VALUE' if there is no interval."""
    if score is None:
        return "-"
    value, low, high = (float(score[key]) for key in ("value", "low", "high"))
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


if __name__ == "__main__":
    sys.exit(main())
