"""The command python -m vaejax.export RUN OUT.

It writes OUT/model.safetensors, OUT/checkpoint (Orbax), OUT/config.json and OUT/README.md, a model card.
Each --stablehlo adds two programs that run without vaejax. `vaejax.load(OUT)` opens the export.
"""

import logging
import pathlib
import shlex
import sys

from vaejax import cli
from vaejax.export.export import CARD, Exported, export
from vaejax.export.model_card import SCORES
from vaejax.export.stablehlo import shape_name
from vaejax.rundir.console import duration
from vaejax.runtime import cache


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.export",
        "Exports a trained VAE for vaejax.load and for other programs: weights, configuration, model card and"
        " StableHLO. The export is read again and compared with the run before OUT is created.",
        "runs/demo exports/demo --stablehlo=1x256x256 --stablehlo=17x256x256",
    )
    parser.add_argument("run", metavar="RUN", help="a run, its checkpoints/STEP, or an export")
    parser.add_argument(
        "out", metavar="OUT", help="a new or empty folder, or an earlier export, which is replaced"
    )
    parser.add_argument(
        "--stablehlo",
        metavar="TxHxW",
        action="append",
        default=[],
        help="write StableHLO programs that encode and decode batches of clips of this shape; repeatable",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="dtype of the weights (default: float32)",
    )
    parser.add_argument(
        "--step",
        metavar="N",
        type=cli.at_least(0),
        help="a completed checkpoint of the run (default: the latest)",
    )
    parser.add_argument(
        "--scores",
        metavar="FILE",
        default="",
        help="results.json of vaejax.evaluate, for the model card (default: RUN/results.json if it exists)",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs how it opens checkpoints
        cache.keep_compiled()
        exported = export(
            options.run,
            options.out,
            step=options.step,
            dtype=options.dtype,
            shapes=options.stablehlo,
            scores=options.scores,
        )
        print(summary(options.run, exported))

    return cli.run(work, "stopped; nothing was written")


def summary(source: str, exported: Exported) -> str:
    """The export, its verification, the main scores and the next command."""
    config, out = exported.config, exported.name
    parts = [f"step {config['step']}", config["weights"]["dtype"], f"{exported.size / 1e6:.1f} MB"]
    if config["stablehlo"]:
        shapes = ", ".join(shape_name(programs["shape"]) for programs in config["stablehlo"])
        parts.append(f"StableHLO for {shapes}")
    lines = [f"done: exported {source} to {out} in {duration(exported.seconds)}: {', '.join(parts)}"]
    if psnr := config["rounding"]:
        lines.append(
            f"  verified: weights of {source}, rounded; PSNR of a test clip {psnr['exported']:.2f} dB"
            f" (source: {psnr['source']:.2f} dB, between the two: {psnr['between']:.1f} dB)"
        )
    else:
        lines.append(f"  verified: identical to {source}")
    for bucket, scores in config["scores"]["buckets"].items() if config["scores"] else ():
        shown = [
            f"{SCORES[name].label} {float(scores[name]['value']):.{SCORES[name].digits}f}"
            for name in ("psnr", "lpips_alexnet")
            if name in scores
        ]
        lines.append(f"  {bucket:20} {'  '.join(shown)}")
    if not config["scores"]:
        lines.append("  no scores: add --scores=results.json, from vaejax.evaluate, for the model card")
    lines.append(f"look at: {pathlib.Path(out) / CARD}")
    lines.append(f"next: python -m vaejax.codec encode FOLDER latents {shlex.quote(f'--model={out}')}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
