"""The effect of perceptual and adversarial terms on a run trained on reconstruction alone.

    vaejax train --config=demo --workdir=runs/plain \\
        --config.loss.weights.perceptual=0.0 --config.loss.weights.adversarial=0.0
    python benchmarks/full_objective.py --init=runs/plain --out=DIR [--config.KEY=VALUE ...]

Starts from the EMA parameters of the first run. The perceptual term counts from the first update, the
discriminators from the 100th. In the demo they count from 650 and 700. Prints held-out PSNR and LPIPS
before and after, the minutes taken, and the largest ratio of every loss term to its running median.
DIR/curve.png shows the curves and DIR/run/panels the samples. Requires matplotlib.
"""

import argparse
import pathlib
import statistics
import time

import runs

SETTING = {
    "steps": 350,
    "log_every": 1,
    "data.buckets.video_9x64x64.batch": 4,  # with 2, the perceptual term depends on which were drawn
    "optim.learning_rate": 3e-4,
    "optim.warmup": 50,
    "ema.decay": 0.98,
    "loss.weights.perceptual": 5.0,
    "loss.perceptual.start": 0,
    "loss.adversarial.start": 100,
    "loss.adversarial.warmup": 50,
    "loss.adversarial.ramp": 100,
    "checkpoint.every": 350,
    "eval.every": 50,
    "panels.every": 175,
}
WINDOW = 50  # updates of the running median


def spikes(steps: dict[int, dict[str, float]]) -> dict[str, float]:
    """Returns each training term's largest ratio to the median of the WINDOW values before it.

    For a term that may be negative, it is 1 + (value - median) / max(|median|, 1) instead of a ratio.
    """
    largest = {}
    for name, values in runs.loss_terms(steps).items():
        for i in range(WINDOW, len(values)):
            middle = statistics.median(values[i - WINDOW : i])
            ratio = 1 + (values[i] - middle) / runs.unit(name, middle)
            largest[name] = max(largest.get(name, 0.0), ratio)
    return largest


def draw(path: pathlib.Path, steps: dict[int, dict[str, float]]) -> None:
    """Plots held-out LPIPS, held-out PSNR and the training terms, one row per bucket."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    keys = sorted({key for row in steps.values() for key in row})
    buckets = sorted({key.split("/")[1] for key in keys} - {"all", "mean"})
    figure, axes = pyplot.subplots(len(buckets), 3, figsize=(16, 4 * len(buckets)), squeeze=False)
    for bucket, row_of_axes in zip(buckets, axes, strict=True):
        for axis, shown in zip(row_of_axes, ("eval/lpips", "eval/psnr", "train/"), strict=True):
            split, start = shown.split("/")
            axis.set_title(f"{bucket}: {shown}")
            axis.set_xlabel("update")
            for key in keys:
                if key.startswith(f"{split}/{bucket}/{start}") and not key.endswith("/loss"):
                    points = [(at, row[key]) for at, row in steps.items() if key in row]
                    axis.plot(*zip(*points, strict=True), label=key.split("/")[2], linewidth=1)
            axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Trains, and prints and plots the changes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--init", required=True, help="the --workdir of the run to start from")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="new folder for the results")
    args, more = parser.parse_known_args()
    begin = time.monotonic()
    steps = runs.train("demo", args.out / "run", SETTING | {"init": args.init}, more)
    minutes = (time.monotonic() - begin) / 60

    draw(args.out / "curve.png", steps)
    first, last = ({k: v for k, v in steps[at].items() if k.startswith("eval/")} for at in (0, max(steps)))
    print(f"{minutes:.1f} minutes, {max(steps)} updates")
    for key in sorted(first):
        name = key.rsplit("/", 1)[-1]
        if name == "psnr":
            print(f"{key}: {first[key]:.2f} -> {last[key]:.2f} dB ({last[key] - first[key]:+.2f})")
        elif name.startswith("lpips"):
            print(f"{key}: {first[key]:.4f} -> {last[key]:.4f} ({last[key] / first[key] - 1:+.1%})")
    for name, ratio in sorted(spikes(steps).items(), key=lambda item: -item[1]):
        print(f"{ratio:.2f} times the running median at most: {name}")


if __name__ == "__main__":
    main()
