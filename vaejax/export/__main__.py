"""Exports a trained VAE: python -m vaejax.export RUN OUT.

Leaves OUT/model.safetensors, OUT/checkpoint (Orbax), OUT/config.json, OUT/README.md (a model card), and for
every --stablehlo programs that run without vaejax. `vaejax.load(OUT)` opens it.
"""

import logging
import sys

from vaejax import cli
from vaejax.export.export import export
from vaejax.runtime import cache


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = cli.parser(
        "vaejax.export",
        "Exports a trained VAE for vaejax.load and for others: weights, configuration, model card, StableHLO."
        " All of it is read again and compared with the run before OUT is there.",
        "runs/demo exports/demo --stablehlo=1x256x256 --stablehlo=17x256x256",
    )
    parser.add_argument("run", metavar="RUN", help="a run, its checkpoints/STEP, or an export")
    parser.add_argument("out", metavar="OUT", help="a new or empty folder; an earlier export is replaced")
    parser.add_argument(
        "--stablehlo",
        metavar="TxHxW",
        action="append",
        default=[],
        help="also encode and decode of this shape as StableHLO, for batches of any size; may be repeated",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights; %(default)s"
    )
    parser.add_argument(
        "--step", metavar="N", type=cli.at_least(0), help="of a run, a checkpoint's; without, the last"
    )
    parser.add_argument(
        "--scores",
        metavar="FILE",
        default="",
        help="results.json of vaejax.evaluate, for the model card; without, RUN/results.json if there is one",
    )
    chosen = parser.parse_args(arguments)

    def work() -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of how it was opened
        cache.keep_compiled()
        print(
            export(
                chosen.run,
                chosen.out,
                step=chosen.step,
                dtype=chosen.dtype,
                shapes=chosen.stablehlo,
                scores=chosen.scores,
            )
        )

    return cli.run(work, "stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
