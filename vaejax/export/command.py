"""Runs python -m vaejax.export once its arguments are parsed."""

import argparse
import logging
import shlex

from vaejax import cli
from vaejax.errors import InputError
from vaejax.export import published, pytorch
from vaejax.export.export import export
from vaejax.export.folder import CARD, Exported
from vaejax.export.model_card import SCORES
from vaejax.export.stablehlo import shape_name
from vaejax.rundir.console import duration
from vaejax.runtime import cache, storage


def run(options: argparse.Namespace) -> None:
    """Exports a run and prints what was written.

    Raises:
      InputError: if a flag or a file cannot be used.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs how it opens checkpoints
    cache.keep_compiled()
    shared = {"step": options.step, "dtype": options.dtype, "scores": options.scores}
    if options.stablehlo and options.format != "vaejax":
        raise InputError(f"--stablehlo={options.stablehlo[0]}; accepted: --format=vaejax only")
    if storage.is_url(options.out) and next(storage.walk(options.out, "OUT"), None):
        raise InputError(f"OUT={options.out}: contains other files; accepted: a new folder, or one on disk")
    with cli.writing(options.out, "OUT"), storage.staged(options.out) as folder:
        out = str(folder) if storage.is_url(options.out) else options.out
        if options.format == "vaejax":
            exported = export(options.run, out, shapes=options.stablehlo, **shared)
        elif options.format == "torch":
            exported = pytorch.export(options.run, out, **shared)
        else:
            exported = published.export(options.run, out, options.format, **shared)
    print(summary(options.run, exported._replace(name=options.out)))


def summary(source: str, exported: Exported) -> str:
    """The text printed at the end: the export, its verification, the main scores and the next command."""
    config, out = exported.config, exported.name
    parts = [f"step {config['step']}", config["weights"]["dtype"], f"{exported.size / 1e6:.1f} MB"]
    if config.get("stablehlo"):
        shapes = ", ".join(shape_name(programs["shape"]) for programs in config["stablehlo"])
        parts.append(f"StableHLO for {shapes}")
    lines = [f"done: exported {source} to {out} in {duration(exported.seconds)}: {', '.join(parts)}"]
    if psnr := config["rounding"]:
        lines.append(
            f"  verified: weights equal those of {source} after rounding; PSNR of a test clip:"
            f" {psnr['exported']:.2f} dB (source: {psnr['source']:.2f} dB,"
            f" between the two reconstructions: {psnr['between']:.1f} dB)"
        )
    else:
        lines.append(f"  verified: identical to {source}")
    if "compared" in config:
        packages = "torch diffusers" if config.get("form") else "torch"
        lines.append(_compared(config["compared"], packages))
    for bucket, scores in config["scores"]["buckets"].items() if config["scores"] else ():
        shown = [
            f"{SCORES[name].label} {float(scores[name]['value']):.{SCORES[name].digits}f}"
            for name in ("psnr", "lpips_alexnet")
            if name in scores
        ]
        lines.append(f"  {bucket:20} {'  '.join(shown)}")
    if not config["scores"]:
        lines.append("  no scores: to add them, use --scores=results.json, written by vaejax.evaluate")
    lines.append(f"look at: {storage.join(out, CARD)}")
    following = f"python -m vaejax.codec encode FOLDER latents {shlex.quote(f'--model={out}')}"
    if "form" in config or "compared" in config:
        following = "run the code in it"
    lines.append(f"next: {following}")
    return "\n".join(lines)


def _compared(worst: dict[str, float], packages: str) -> str:
    """How much PyTorch differs from vaejax, see `pytorch.export`; `packages` are those of the comparison."""
    if not worst:
        return f"  not compared: outputs in PyTorch, which needs pip install {packages}"
    shown = ", ".join(f"{name.replace('_', '-')} {error:.1e}" for name, error in worst.items())
    return f"  verified in PyTorch: largest differences, relative to the largest value: {shown}"
