"""Held-out quality against minutes of training: vaejax's `tiny` and published architectures in PyTorch.

    python benchmarks/time_to_quality.py --out=DIR [--minutes=8] [--rates 3e-4 1e-3 3e-3]

All train on the demo's samples, the same batches in the same order, by the same likelihood alone, for as many
updates as take the same minutes on all cores of this machine; see peers.py for the networks and trainer. The
time of an update is measured beforehand, with all networks in turns (see update.py), so load beside the
training changes nothing. Compilation and evaluation do not count. Each network has the best of several
learning rates, found in runs of a quarter of the updates. Prints scores by minute, interpolated between
evaluations; DIR/time_to_quality.json has all numbers, DIR/time_to_quality.png shows the curves. Rerun the
same command to continue. Requires torch, diffusers and matplotlib.
"""

import argparse
import pathlib
import sys
import time
from typing import Any

import numpy as np
import runs
import update
from update import PEERS, VAEJAX

from vaejax import cli, files
from vaejax.config import check
from vaejax.configs import demo
from vaejax.data.bucket import buckets_of

ROUNDS = 9  # timed updates of each network
TRIAL = 4  # share of the updates, as a divisor, in runs that find the learning rate
KEPT = 1500  # updates whose batches are kept; peers then start again
EVALUATIONS = 10
SETTINGS = {"loss.weights.perceptual": 0.0, "loss.weights.adversarial": 0.0}
SCORES = ("psnr", "lpips")


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for samples, runs and results")
    parser.add_argument("--minutes", type=float, default=8.0, help="minutes of training (default: 8)")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="learning rates")
    parser.add_argument("--contestants", nargs="+", default=[VAEJAX, *PEERS], choices=[VAEJAX, *PEERS])
    parser.add_argument("--train", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        return train_peer(args.train, pathlib.Path(args.out), args.rates[0], args.steps)
    return cli.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Trains all contestants and writes the results."""
    out = cli.made_folder(args.out)
    samples(out / "samples")
    paces = measured_paces(out / "paces.json")
    trials: dict[str, dict[str, float]] = {}
    curves: dict[str, list] = {}
    for name in args.contestants:
        pace, contest = paces[name], vaejax_curve if name == VAEJAX else peer_curve
        count = int(60 * args.minutes / pace)
        steps = {trial: _rounded(count // trial) for trial in (TRIAL, 1)}

        def curve(rate: float, trial: int, name=name, pace=pace, contest=contest, steps=steps) -> list:
            print(f"training {name}, learning rate {rate:g}, {steps[trial]} updates ...", file=sys.stderr)
            folder = out / f"{name.replace(' ', '_')}_{rate:g}_{steps[trial]}"
            rows = contest(name, folder, out, rate, steps[trial])
            return [{"seconds": row["step"] * pace} | row for row in rows]

        trials[name] = {f"{rate:g}": final(curve(rate, TRIAL)) for rate in args.rates}
        curves[name] = curve(float(max(trials[name], key=lambda rate: trials[name][rate])), 1)
        best = {name: max(by_rate, key=lambda rate: by_rate[rate]) for name, by_rate in trials.items()}
        results = {"minutes": args.minutes, "paces": paces, "trials": trials, "best": best, "curves": curves}
        files.write_json(out / "time_to_quality.json", results)
        draw(out / "time_to_quality.png", results)
    print_table(results)
    print(f"figure: {out / 'time_to_quality.png'}\nscores: {out / 'time_to_quality.json'}")


def measured_paces(path: pathlib.Path) -> dict[str, float]:
    """Seconds of an update by network, kept in a file."""
    if not path.exists():
        found = update.measure("both", ROUNDS)
        files.write_json(path, {name: one["seconds"]["median"] for name, one in found.items()})
    return files.read_json(path)


def _rounded(steps: int) -> int:
    """A number of updates, rounded down to whole evaluations."""
    return max(EVALUATIONS, steps // EVALUATIONS * EVALUATIONS)


def final(curve: list[dict[str, Any]]) -> float:
    """The last PSNR of a curve, the mean over buckets."""
    return float(np.mean([value for key, value in curve[-1].items() if key.endswith("/psnr")]))


def samples(folder: pathlib.Path) -> None:
    """Writes the batches of the first KEPT updates and the held-out samples, one array a bucket."""
    if folder.exists():
        return
    from vaejax.data import pipeline, sources

    config = check(demo.get_config())
    opened, buckets = sources.open_sources(config.data), buckets_of(config)
    with files.atomic_folder(folder) as unfinished:
        for bucket in buckets:
            held_out = pipeline.eval_batches(opened, bucket, config.data, config.eval.samples, bucket.batch)
            np.save(unfinished / f"{bucket.name}_eval.npy", np.concatenate([b.frames for b in held_out]))
        batches: dict[str, list[np.ndarray]] = {}
        with pipeline.train_stream(opened, buckets, config.data, seed=config.seed) as stream:
            for step in stream:
                for name, batch in step.batches.items():
                    batches.setdefault(name, []).append(batch.frames)
                if step.step + 1 == KEPT:
                    break
        for name, frames in batches.items():
            np.save(unfinished / f"{name}_train.npy", np.stack(frames))


def loaded(folder: pathlib.Path, split: str) -> dict[str, np.ndarray]:
    """The arrays of a split by bucket."""
    suffix = f"_{split}.npy"
    paths = sorted(folder.glob(f"*{suffix}"))
    return {path.name.removesuffix(suffix): np.load(path, mmap_mode="r") for path in paths}


def vaejax_curve(name: str, folder: pathlib.Path, out: pathlib.Path, rate: float, steps: int) -> list:
    """Trains vaejax; returns a row per evaluation: step and scores by 'BUCKET/SCORE'."""
    del name, out
    settings = SETTINGS | {"optim.learning_rate": rate, "eval.linear_samples": 0, "eval.latent_samples": 0}
    rows = []
    for at, row in runs.train("demo", folder, settings | _evaluated(steps)).items():
        scores = {
            key.removeprefix("eval/").replace("lpips_alexnet", "lpips"): value
            for key, value in row.items()
            if key.startswith("eval/") and key.endswith(("/psnr", "/lpips_alexnet")) and "/mean/" not in key
        }
        if scores and at:
            rows.append({"step": at} | scores)
    return rows


def _evaluated(steps: int) -> dict[str, int]:
    """Settings of a run that logs and evaluates at the same updates, and saves at the end."""
    every = steps // EVALUATIONS
    return {
        "steps": steps,
        "log_every": every,
        "eval.every": every,
        "checkpoint.every": steps,
        "panels.every": steps,
    }


def peer_curve(name: str, folder: pathlib.Path, out: pathlib.Path, rate: float, steps: int) -> list:
    """Trains a peer in a process of its own and scores what it reconstructed; like `vaejax_curve`."""
    if not (folder / "scores.json").exists():
        cli.made_folder(folder)
        if steps > KEPT:
            print(f"note: {name} repeats the batches of its first {KEPT} updates", file=sys.stderr)
        command = [sys.executable, __file__, f"--out={folder}", f"--train={name}", f"--steps={steps}"]
        runs.run([*command, "--rates", str(rate)])
        reconstructed = sorted(folder.glob("*.npz"), key=lambda file: int(file.stem))
        rows = [{"step": int(file.stem)} | score(out / "samples", file) for file in reconstructed]
        files.write_json(folder / "scores.json", rows)
    return files.read_json(folder / "scores.json")


def train_peer(name: str, folder: pathlib.Path, rate: float, steps: int) -> int:
    """Trains a peer and writes its reconstructions at every evaluation."""
    import peers

    batches, held_out = (loaded(folder.parent / "samples", split) for split in ("train", "eval"))
    trainer = peers.Trainer(name, rate, steps)
    begin = time.monotonic()
    for step in range(1, steps + 1):
        trainer.update(
            {bucket: np.array(frames[(step - 1) % len(frames)]) for bucket, frames in batches.items()}
        )
        if step % (steps // EVALUATIONS) == 0:
            decoded = {
                bucket: np.concatenate(
                    [trainer.reconstruct(frames[i : i + 4]) for i in range(0, len(frames), 4)]
                )
                for bucket, frames in held_out.items()
            }
            np.savez(folder / f"{step}.npz", **decoded)
            print(f"{name}: update {step}/{steps}, {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return 0


def score(folder: pathlib.Path, file: pathlib.Path) -> dict[str, float]:
    """PSNR and LPIPS of reconstructions, as vaejax scores its own."""
    import jax

    from vaejax.evaluate import during_training, metrics
    from vaejax.models.pixels import from_uint8
    from vaejax.networks import lpips

    weights, found = lpips.load_configured("alexnet"), {}
    for bucket, original in loaded(folder, "eval").items():
        decoded = np.load(file)[bucket]
        seen = np.linspace(0, original.shape[1] - 1, min(original.shape[1], during_training.LPIPS_FRAMES))
        seen = seen.round().astype(int)

        def both(x, y, seen=seen):
            x, y = from_uint8(x), from_uint8(y)
            parts = (a[:, seen].reshape(-1, *a.shape[2:]) for a in (x, y))
            return metrics.psnr(x, y).mean(), lpips.lpips(weights, *parts, "alexnet").mean()

        values = [jax.jit(both)(original[i : i + 8], decoded[i : i + 8]) for i in range(0, len(original), 8)]
        found |= {f"{bucket}/{name}": float(np.mean([v[i] for v in values])) for i, name in enumerate(SCORES)}
    return found


def at_minute(curve: list[dict[str, Any]], minute: float, score: str) -> float:
    """A score after some minutes, interpolated; the first or last one outside the evaluations."""
    return float(np.interp(60 * minute, [row["seconds"] for row in curve], [row[score] for row in curve]))


def reached(curve: list[dict[str, Any]], bucket: str, level: float) -> float:
    """Seconds after which a curve first has a PSNR, interpolated; infinite if never."""
    before = None
    for row in curve:
        value = row[f"{bucket}/psnr"]
        if value >= level:
            if before is None:
                return row["seconds"]
            share = (level - before[1]) / (value - before[1])
            return before[0] + share * (row["seconds"] - before[0])
        before = row["seconds"], value
    return float("inf")


def print_table(results: dict[str, Any]) -> None:
    """Prints the scores by minute, and when vaejax reaches the best PSNR of each peer."""
    curves = results["curves"]
    buckets = sorted({key.split("/")[0] for key in next(iter(curves.values()))[-1] if "/" in key})
    minutes = range(1, round(results["minutes"]) + 1)
    for bucket in buckets:
        for score in SCORES:
            print(f"\n{bucket}, held-out {score}, by minute")
            print(f"| network | rate | updates | {' | '.join(map(str, minutes))} |")
            print("|---|---|---|" + "---|" * len(minutes))
            for name, curve in curves.items():
                values = [at_minute(curve, minute, f"{bucket}/{score}") for minute in minutes]
                cells = [f"{value:.2f}" if score == "psnr" else f"{value:.3f}" for value in values]
                print(f"| {name} | {results['best'][name]} | {curve[-1]['step']} | {' | '.join(cells)} |")
    if VAEJAX not in curves:
        return
    print()
    for name in (name for name in curves if name != VAEJAX):
        for bucket in buckets:
            level = max(row[f"{bucket}/psnr"] for row in curves[name])
            theirs = reached(curves[name], bucket, level)
            share = reached(curves[VAEJAX], bucket, level) / theirs
            print(f"{bucket}: vaejax reaches {name}'s best PSNR, {level:.2f} dB, in {share:.2f} of its time")


def draw(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Draws PSNR and LPIPS against minutes, a column per bucket."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    curves = results["curves"]
    buckets = sorted({key.split("/")[0] for key in next(iter(curves.values()))[-1] if "/" in key})
    figure, axes = pyplot.subplots(
        2, len(buckets), figsize=(5 * len(buckets), 6), layout="constrained", squeeze=False
    )
    for column, bucket in enumerate(buckets):
        for row, name_of_score in enumerate(SCORES):
            panel = axes[row][column]
            for name, curve in curves.items():
                minutes = [point["seconds"] / 60 for point in curve]
                values = [point[f"{bucket}/{name_of_score}"] for point in curve]
                width = 2.5 if name == VAEJAX else 1.5
                panel.plot(minutes, values, "o-", markersize=3, linewidth=width, label=name)
            panel.set_xlim(0, results["minutes"])
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(f"{bucket}, {'PSNR, dB' if row == 0 else 'LPIPS (AlexNet), lower is better'}")
        axes[1][column].set_xlabel("minutes of updates on two cores")
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
