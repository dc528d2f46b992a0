"""Held-out quality against minutes of training: vaejax's `tiny` and published architectures in PyTorch.

    python benchmarks/time_to_quality.py --out=DIR [--minutes=8] [--rates 3e-4 1e-3 3e-3]

All train on the demo's samples, the same batches in the same order, by the same likelihood alone, in the same
minutes on all cores of this machine; see peers.py for the networks and their trainer. Each contestant first
runs for some updates, to learn how many fit into the minutes; its learning rate falls to the end of these.
Minutes count updates and compilation, for which nothing is cached, but not evaluation. Each takes the best of
three learning rates. Prints scores by minute, interpolated between evaluations; DIR/time_to_quality.json has
all numbers, DIR/time_to_quality.png shows the curves. Rerun the same command to continue. Requires torch,
diffusers and matplotlib.
"""

import argparse
import json
import os
import pathlib
import sys
import time
from typing import Any

import numpy as np
import runs

from vaejax import cli, files
from vaejax.config import check
from vaejax.configs import demo
from vaejax.data.bucket import buckets_of

VAEJAX = "vaejax"
PEERS = ("Wan 2.1", "CogVideoX", "HunyuanVideo")  # those of peers.py, which needs torch
TRIAL = 40  # updates that are timed first
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
    curves: dict[str, dict[str, list]] = {}
    for name in args.contestants:
        for rate in args.rates:
            print(f"training {name}, learning rate {rate:g} ...", file=sys.stderr)
            folder = out / f"{name.replace(' ', '_')}_{rate:g}_{args.minutes:g}min"
            contest = vaejax_curve if name == VAEJAX else peer_curve
            curves.setdefault(name, {})[f"{rate:g}"] = contest(name, folder, out, rate, 60 * args.minutes)
    best = {name: max(by_rate, key=lambda rate: final(by_rate[rate])) for name, by_rate in curves.items()}
    results = {"minutes": args.minutes, "curves": curves, "best": best}
    files.write_json(out / "time_to_quality.json", results)
    print_table(results)
    draw(out / "time_to_quality.png", results)
    print(f"figure: {out / 'time_to_quality.png'}\nscores: {out / 'time_to_quality.json'}")


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


def vaejax_curve(name: str, folder: pathlib.Path, out: pathlib.Path, rate: float, seconds: float) -> list:
    """Trains vaejax; returns a row per evaluation: seconds and scores by 'BUCKET/SCORE'."""
    del name
    settings = SETTINGS | {"optim.learning_rate": rate, "eval.linear_samples": 0, "eval.latent_samples": 0}
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder / "xla")
    trial = runs.train("demo", out / "trial", settings | _evaluated(TRIAL))
    times = [row["train/all/step_seconds"] for row in trial.values() if "train/all/step_seconds" in row]
    steps = _steps(seconds, times, _compilation(trial))
    metrics = runs.train("demo", folder, settings | _evaluated(steps))
    rows, before, passed = [], 0, _compilation(metrics)
    for at, row in metrics.items():
        if "train/all/step_seconds" in row:
            passed, before = passed + (at - before) * row["train/all/step_seconds"], at
        scores = {
            key.removeprefix("eval/").replace("lpips_alexnet", "lpips"): value
            for key, value in row.items()
            if key.startswith("eval/") and key.endswith(("/psnr", "/lpips_alexnet")) and "/mean/" not in key
        }
        if scores and at:
            rows.append({"seconds": passed, "step": at} | scores)
    return rows


def _evaluated(steps: int) -> dict[str, int]:
    """Settings of a run that logs and evaluates at the same updates, and saves at the end."""
    every = max(1, steps // EVALUATIONS)
    return {
        "steps": steps,
        "log_every": every,
        "eval.every": every,
        "checkpoint.every": steps,
        "panels.every": steps,
    }


def _compilation(metrics: dict[int, dict[str, float]]) -> float:
    """Seconds of compilation."""
    return sum(row.get("train/all/compile_seconds", 0.0) for row in metrics.values())


def _steps(seconds: float, update_seconds: list[float], compilation: float) -> int:
    """The number of updates that fit, rounded down to whole evaluations."""
    count = (seconds - compilation) / float(np.median(update_seconds))
    return max(EVALUATIONS, int(count) // EVALUATIONS * EVALUATIONS)


def peer_curve(name: str, folder: pathlib.Path, out: pathlib.Path, rate: float, seconds: float) -> list:
    """Trains a peer in a process of its own and scores what it reconstructed; like `vaejax_curve`."""
    if not (folder / "scores.json").exists():
        trial = out / f"{name.replace(' ', '_')}_trial"
        timed = _trained(name, trial, out, rate, TRIAL)
        steps = _steps(seconds, timed["seconds"][TRIAL // 2 :], sum(timed["seconds"][:2]))
        if steps > KEPT:
            print(f"note: {name} repeats the batches of its first {KEPT} updates", file=sys.stderr)
        times = np.cumsum(_trained(name, folder, out, rate, steps)["seconds"])
        rows = []
        for file in sorted(folder.glob("*.npz"), key=lambda f: int(f.stem)):
            step = int(file.stem)
            rows.append({"seconds": float(times[step - 1]), "step": step} | score(out / "samples", file))
        files.write_json(folder / "scores.json", rows)
    return files.read_json(folder / "scores.json")


def _trained(name: str, folder: pathlib.Path, out: pathlib.Path, rate: float, steps: int) -> dict[str, Any]:
    """Trains a peer unless that was done; returns the seconds of its updates."""
    if not (folder / "updates.json").exists():
        cli.made_folder(folder)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        command = [sys.executable, __file__, f"--out={folder}", f"--train={name}", f"--steps={steps}"]
        runs.run([*command, "--rates", str(rate)])
    return files.read_json(folder / "updates.json")


def train_peer(name: str, folder: pathlib.Path, rate: float, steps: int) -> int:
    """Trains a peer and writes the seconds of its updates, and reconstructions at every evaluation."""
    import peers

    batches, held_out = (loaded(folder.parent / "samples", split) for split in ("train", "eval"))
    trainer, seconds = peers.Trainer(name, rate, steps), []
    begin = time.monotonic()
    for step in range(1, steps + 1):
        batch = {bucket: np.array(frames[(step - 1) % len(frames)]) for bucket, frames in batches.items()}
        seconds.append(trainer.timed_update(batch))
        if step % max(1, steps // EVALUATIONS) == 0:
            decoded = {
                bucket: np.concatenate(
                    [trainer.reconstruct(frames[i : i + 4]) for i in range(0, len(frames), 4)]
                )
                for bucket, frames in held_out.items()
            }
            np.savez(folder / f"{step}.npz", **decoded)
            print(f"{name}: update {step}/{steps}, {time.monotonic() - begin:.0f} s", file=sys.stderr)
    (folder / "updates.json").write_text(json.dumps({"seconds": seconds}))
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
    curves = {name: results["curves"][name][rate] for name, rate in results["best"].items()}
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

    curves = {name: results["curves"][name][rate] for name, rate in results["best"].items()}
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
        axes[1][column].set_xlabel("minutes of training on two cores")
    axes[0][0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
