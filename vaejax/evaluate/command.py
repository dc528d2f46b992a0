"""Runs python -m vaejax.evaluate once its arguments are parsed."""

import argparse
import logging
import math
from collections.abc import Mapping
from typing import Any

from vaejax import cli, files
from vaejax.data.table import count_of
from vaejax.errors import InputError
from vaejax.evaluate import evaluation, html_report
from vaejax.runtime import cache, storage

# Scores shown on the console: key in results.json, heading with the unit, decimal places.
_SHOWN = (
    ("psnr", "PSNR dB", 2),
    ("psnr_alpha", "alpha dB", 2),
    ("ssim", "SSIM", 4),
    ("lpips_alexnet", "LPIPS", 4),
    ("kid_efficientnet", "KID", 5),
    ("rfvd_i3d", "rFVD", 2),
    ("bits_per_pixel", "bits per pixel", 3),
)


def run(options: argparse.Namespace) -> None:
    """Evaluates codecs, writes results.json and report.html, and prints the main scores.

    Raises:
      InputError: if a flag or a file cannot be used.
    """
    names = [options.checkpoint] * bool(options.checkpoint) + options.compare
    if not names:
        raise InputError(
            "--checkpoint and --compare are missing; accepted: --checkpoint=DIR, --compare CODEC, or both"
        )
    if not storage.is_url(options.out):
        cli.made_folder(options.out)
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
    with cli.writing(options.out), storage.staged(options.out) as out:
        out.mkdir(exist_ok=True)
        files.write_json(out / "results.json", results)
        html_report.write(out / "report.html", results, shown)
    print(summary(results))
    report, scores = (storage.join(options.out, name) for name in ("report.html", "results.json"))
    print(f"report: {report}\nscores: {scores}")


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
        count = count_of(max(one["files"] for one in scored.values()), "file")
        lines.append(f"{bucket}, n = {samples} samples of {count}, scores [95% interval]")
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
    """'VALUE [LOW, HIGH]', 'VALUE' if there is no interval, or '-' if there is no score."""
    if score is None:
        return "-"
    value, low, high = (float(score[key]) for key in ("value", "low", "high"))
    if not (math.isfinite(low) and math.isfinite(high)) or low == high:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
