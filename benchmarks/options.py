"""What each option of the loss and the networks gains: PSNR, LPIPS, flicker and the probe, over seeds.

    python -m benchmarks.options --out=DIR [OPTION ...]

Run it in a checkout. Every option is compared with the same training without it, paired by seed: differences
with 95% intervals by Student's t. All options take about three hours
on two cores. DIR/options.json has all numbers, DIR/options.md the table. Rerun the same command to continue.
Requires scipy.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.field_notes import generators, settings, tiles
from benchmarks.field_notes.lab import Lab
from benchmarks.field_notes.verdict import Difference, paired
from vaejax import cli, files

SEEDS = (0, 1, 2)
STEPS = 300
PLAIN: dict[str, Any] = {}
# The demo's perceptual and adversarial terms, in the last half.
GAME = {
    "loss.weights.perceptual": 2.0,
    "loss.weights.adversarial": 0.05,
    "loss.perceptual.start": STEPS // 2,
    "loss.adversarial.start": STEPS // 2,
    "loss.adversarial.warmup": 30,
    "loss.adversarial.ramp": 30,
}
# Name -> (settings of the training that it is compared with, settings of the option).
OPTIONS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "laplace likelihood": (PLAIN, {"loss.likelihood": "laplace"}),
    "patch stem": (PLAIN, {"model.stem": "patch"}),
    "high_pass 0.5": (PLAIN, {"loss.weights.high_pass": 0.5}),
    "wavelet 0.5": (PLAIN, {"loss.weights.wavelet": 0.5}),
    "temporal 0.5": (PLAIN, {"loss.weights.temporal": 0.5}),
    "outliers 0.1": (PLAIN, {"loss.weights.outliers": 0.1}),
    "roughness 0.1": (PLAIN, {"loss.weights.roughness": 0.1}),
    "equivariance 0.5": (PLAIN, {"loss.weights.equivariance": 0.5}),
    "channel mask 0.5": (PLAIN, {"loss.latent.mask": 0.5}),
    "unet discriminators": (GAME, {"loss.adversarial.kind": "unet"}),
    "logistic loss": (GAME, {"loss.adversarial.loss": "logistic"}),
    "non-saturating loss": (GAME, {"loss.adversarial.loss": "non_saturating"}),
    "R1 1": (GAME, {"loss.adversarial.r1": 1.0}),
    "LeCam 0.01": (GAME, {"loss.adversarial.lecam": 0.01}),
    "adaptive weight 1": (GAME, {"loss.adversarial.adaptive": 1.0}),
}
# Score -> the sign that is better.
SCORES = {"psnr": +1, "lpips_alexnet": -1, "flicker": -1, "kernel": -1}


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.options", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("options", nargs="*", metavar="OPTION", help=f"{', '.join(OPTIONS)} (default: all)")
    parser.add_argument("--out", required=True, help="folder for runs and results")
    args, more = parser.parse_known_args()
    if unknown := set(args.options) - set(OPTIONS):
        parser.error(f"no option {sorted(unknown)[0]!r}; accepted: {', '.join(OPTIONS)}")
    return cli.run(lambda: measure(args, more))


def measure(args: argparse.Namespace, more: list[str]) -> None:
    """Trains every option and what it is compared with, and writes the table."""
    out = cli.made_folder(args.out)
    lab, both = Lab(out, "cpu", "", more), settings.joint(Lab(out, "cpu", ""))
    image, clip = both.buckets
    tiles.write(out / "tiles")
    probes: list[Any] = []

    def scores(name: str, changes: Mapping[str, Any], seed: int) -> dict[str, float]:
        one = lab.train(name, seed, STEPS, both.settings | {"eval.every": STEPS} | dict(changes))

        def probed() -> float:
            if not probes:
                probes.append(generators.judge(out / "tiles", 64))
            return generators.score(probes[0], one, seeds=1)["kernel"]["mean"]

        found = {
            f"{score}, {kind}": one.last(f"eval/{bucket}/{score}")
            for kind, bucket in (("images", image), ("clips", clip))
            for score in ("psnr", "lpips_alexnet")
        }
        found["flicker"] = one.last(f"eval/{clip}/flicker")
        found["kernel"] = lab.compute(f"{name} {seed}".replace(" ", "_"), {"steps": STEPS}, probed)
        return found

    table: dict[str, list[Difference]] = {}
    for name in args.options or OPTIONS:
        base, changes = OPTIONS[name]
        without = "with adversary" if base is GAME else "plain"
        theirs = [scores(without, base, seed) for seed in SEEDS]
        ours = [scores(name, {**base, **changes}, seed) for seed in SEEDS]
        table[name] = [
            paired(key, "", *([row[key] for row in rows] for rows in (ours, theirs)), better(key))
            for key in ours[0]
        ]
        (out / "options.md").write_text(markdown(table))
        files.write_json(
            out / "options.json",
            {name: {d.what: d.values for d in differences} for name, differences in table.items()},
        )
        print(f"{name}: " + ", ".join(f"{d.what} {cell(d)}" for d in table[name]))
    print(f"table: {out / 'options.md'}")


def better(key: str) -> int:
    """The sign of an improvement of a score."""
    return SCORES[key.partition(",")[0]]


def cell(difference: Difference) -> str:
    """A difference with its interval, and + or - if it is a gain or a loss beyond chance."""
    mark = {"shown": " **+**", "contradicted": " **-**"}.get(difference.verdict, "")
    digits = 2 if difference.what.startswith("psnr") else 3
    return f"{difference.mean:+.{digits}f} ± {difference.half_width:.{digits}f}{mark}"


def markdown(table: Mapping[str, list[Difference]]) -> str:
    """The table: one row per option; **+** marks gains and **-** losses beyond chance."""
    columns = [difference.what for difference in next(iter(table.values()))]
    rows = [["option", *columns], ["---"] * (len(columns) + 1)]
    rows += [[name, *map(cell, differences)] for name, differences in table.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
