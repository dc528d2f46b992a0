"""The command python -m vaejax.export RUN OUT.

It writes OUT/model.safetensors, OUT/checkpoint (Orbax), OUT/config.json and OUT/README.md, a model card.
Each --stablehlo adds two programs that run without vaejax. `vaejax.load(OUT)` opens the export.
With --format=torch, OUT is for PyTorch instead: model.safetensors, autoencoder.py, config.json and README.md.
"""

import sys

from vaejax import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.export",
        "Exports a trained VAE for vaejax.load, PyTorch and other programs: weights, configuration and model"
        " card. The export is read again and compared with the run before OUT is created.",
        "runs/demo exports/demo --stablehlo=1x256x256 --stablehlo=17x256x256",
    )
    parser.add_argument(
        "run", metavar="RUN", help="a run, its checkpoints/STEP, an export, or a published VAE"
    )
    parser.add_argument(
        "out", metavar="OUT", help="a new or empty folder, or an earlier export, which is replaced"
    )
    parser.add_argument(
        "--format",
        choices=("vaejax", "torch", "diffusers", "original"),
        default="vaejax",
        help="vaejax: for vaejax.load and JAX; torch: a PyTorch module of one file, with the calls of"
        " diffusers' video autoencoders; for the family wan, diffusers: a folder that AutoencoderKLWan loads;"
        " original: a .pth file with the published names (default: vaejax)",
    )
    parser.add_argument(
        "--stablehlo",
        metavar="TxHxW",
        action="append",
        default=[],
        help="write StableHLO programs that encode and decode batches of clips of this shape; repeatable"
        " (default: none)",
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
        help="step of a completed checkpoint of the run (default: the latest)",
    )
    parser.add_argument(
        "--scores",
        metavar="FILE",
        default="",
        help="results.json of vaejax.evaluate, for the model card (default: RUN/results.json if it exists)",
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        from vaejax.export import command  # imported here, so that --help does not import JAX

        command.run(options)

    return cli.run(work, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
