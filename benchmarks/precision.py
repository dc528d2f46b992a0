"""Training in bfloat16 against training in float32: the shrunk flagship, twice on the same samples.

    python benchmarks/precision.py --out=DIR [--config.data.media=FOLDER]

Trains joint:tiny, discriminators included, for 300 updates in each dtype. For every loss
term of every bucket, it compares the means of the last 50 updates that had the term. The difference is
relative to the mean, or to 1 if the term may be negative (nll, adversarial) and its mean is smaller. The
default media are the demo's.
"""

import argparse
import pathlib
import statistics

import runs

SETTING = {
    "steps": 300,
    "log_every": 1,
    "eval.every": 300,
    "panels.every": 300,
    "checkpoint.every": 300,
    "eval.linear_samples": 0,
    "data.sources": '{"demo": {"kind": "demo"}}',
}
LAST = 50


def main() -> None:
    """Trains twice and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="new folder for the runs")
    args, more = parser.parse_known_args()
    exact, rough = (
        runs.loss_terms(runs.train("joint:tiny", args.out / dtype, SETTING | {"model.dtype": dtype}, more))
        for dtype in ("float32", "bfloat16")
    )
    print(f"{'term':44} {'float32':>10} {'bfloat16':>10} {'apart':>7}")
    for name, values in sorted(exact.items()):
        a, b = (statistics.mean(run[-LAST:]) for run in (values, rough[name]))
        print(f"{name.removeprefix('train/'):44} {a:10.4f} {b:10.4f} {abs(a - b) / runs.unit(name, a):7.1%}")


if __name__ == "__main__":
    main()
