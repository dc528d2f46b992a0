"""Distillation of a small decoder: quality, flicker and speed against its teacher, and against pixels alone.

    python benchmarks/distillation.py --out=DIR [--teacher=RUN] [--steps=2000] [--config.KEY=VALUE ...]

Unless RUN is given, trains a teacher on 400 photos and 48 clips of moving shapes (see shapes.py), which no
linear codec suits. Then distills a decoder of at most a quarter of the parameters on a few other photos and
clips, as somebody does who has a published teacher and few media. Trains the same decoder on their pixels
alone for as long: its number of updates makes up for its shorter ones. All are scored on shapes that no run
has seen, and decoding is timed in turns. Prints a table; DIR/distillation.json has all numbers,
DIR/distillation.png shows curves and samples. The flags --config.KEY=VALUE apply to both students. Rerun the
same command to continue. Requires matplotlib.
"""

import argparse
import pathlib
import shutil
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import runs
import screens
import shapes
from PIL import Image

import vaejax
from vaejax import cli, files
from vaejax.codec.load import load_vae
from vaejax.models.autoencoder import Autoencoder

CHANNELS = 8  # of the latents; a network's advantage over a linear codec grows with the compression
MOST_PARAMETERS = 0.25  # of the teacher's decoder
LEAST_SPEED = 3.0  # times that of the teacher's decoder
MOST_LOSS = 1.5  # dB below the teacher
MOST_FLICKER = 1.1  # times the teacher's
LEAST_GAIN = 2.0  # dB of the teacher above the linear codec
COMMON = {
    "data.buckets": '{"image_64x64": {"batch": 8}, "video_9x64x64": {"batch": 1}}',
    "data.fps": screens.FPS,
    "data.zoom": 1.6,
    "data.holdout": 0.1,
    "data.workers": 1,
    "loss.likelihood": "gaussian",  # squared error, which PSNR measures
    "loss.weights.perceptual": 0.0,
    "loss.weights.adversarial": 0.0,
    "optim.learning_rate": 3e-3,
    "optim.fan_in": 256,
    "optim.warmup": 50,
    "ema.decay": 0.98,
}
STUDENT = {
    "model.size": "tiny",
    "model.widths": "(40, 56, 80)",
    "model.dtype": "float32",
    "checkpoint.best": "mean/psnr",
}
PIXELS = {"loss.weights.reconstruction": 1.0, "loss.weights.teacher": 0.0, "loss.weights.features": 0.0}
STUDENTS = {"student": {}, "pixels alone": PIXELS}  # settings, which come after those of the command line
TRIAL, TRIALS = 24, 3  # updates of a trial that times updates, and its repetitions
BUCKETS = {"image_64x64": (8, 1, 64, 64, 3), "video_9x64x64": (1, 9, 64, 64, 3)}  # and shapes that are timed
COLUMNS, SIDE = 12, 80  # samples in the figure, and their side in pixels


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for media, runs and results")
    parser.add_argument("--teacher", default="", help="run to learn from (default: trains one)")
    parser.add_argument(
        "--teacher-steps", type=cli.at_least(1), default=3000, help="updates of that teacher (default: 3000)"
    )
    parser.add_argument(
        "--family", default="vaejax", help="family of that teacher, in its size tiny (default: vaejax)"
    )
    parser.add_argument(
        "--steps", type=cli.at_least(1), default=2000, help="updates of the student (default: 2000)"
    )
    parser.add_argument(
        "--photos", type=cli.at_least(2), default=16, help="photos that students learn from (default: 16)"
    )
    parser.add_argument(
        "--clips", type=cli.at_least(2), default=4, help="clips that students learn from (default: 4)"
    )
    args, more = parser.parse_known_args()
    return cli.run(lambda: measure(args, more))


def measure(args: argparse.Namespace, more: list[str]) -> None:
    """Makes the media, trains, scores, times, and writes the results."""
    out = cli.made_folder(args.out)
    media = out / "media"
    own = media / f"own_{args.photos}_{args.clips}"
    shapes.write(media / "train", photos=400, clips=48, seed=0)
    shapes.write(media / "test", photos=64, clips=24, seed=1, length=24)
    # Long enough for a held-out sample in the last fifth of each clip.
    shapes.write(own, photos=args.photos, clips=args.clips, seed=2, length=60)
    common = COMMON | {"data.media": media / "train"}

    teacher = pathlib.Path(args.teacher or out / "teacher")
    if not args.teacher:
        print(f"training {teacher} ...", file=sys.stderr)
        settings = {"model.family": args.family, "model.size": "tiny", "model.latent_channels": CHANNELS}
        runs.train("demo", teacher, common | settings | runs.every(args.teacher_steps, evaluations=10))
    common |= STUDENT | {"teacher": teacher, "data.media": own}
    seconds = update_seconds(out / "trials", common, more)
    ratio = seconds["student"] / seconds["pixels alone"]
    steps = {"student": args.steps, "pixels alone": round(args.steps * ratio)}
    folders, curves = {"teacher": teacher}, {}
    for name, changes in STUDENTS.items():
        folders[name] = out / name.replace(" ", "_")
        print(f"training {folders[name]} ...", file=sys.stderr)
        settings = common | runs.every(steps[name], evaluations=10)
        rows = runs.train("distill", folders[name], settings, more, changes)
        curves[name] = [[at * seconds[name], row] for at, row in scores_of(rows).items()]
    scores = runs.evaluate(folders, media / "test", out / "scores", [steps, args.teacher_steps, more])
    results = {
        "steps": steps,
        "flags": more,
        "update_seconds": seconds,
        "scores": scores,
        "decoders": decoders(folders),
        "curves": curves,
    }
    files.write_json(out / "distillation.json", results)
    print_table(results)
    draw(out / "distillation.png", results, folders, media / "test")
    print(f"figure: {out / 'distillation.png'}\nscores: {out / 'distillation.json'}")


def scores_of(rows: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """PSNR of the student and its teacher at every evaluation, by 'BUCKET/psnr' or 'BUCKET/psnr_start'."""
    names = [f"{bucket}/{name}" for bucket in BUCKETS for name in ("psnr", "psnr_start")]
    evaluated = {at: row for at, row in rows.items() if f"eval/{names[0]}" in row}
    return {at: {name: row[f"eval/{name}"] for name in names} for at, row in evaluated.items()}


def update_seconds(folder: pathlib.Path, common: dict[str, Any], more: list[str]) -> dict[str, float]:
    """Times an update of both students in short runs that take turns; returns medians, kept in a file."""
    kept, asked = folder / "seconds.json", {"common": str(common), "more": more}
    if kept.exists() and (found := files.read_json(kept))["asked"] == asked:
        return found["seconds"]
    shutil.rmtree(folder, ignore_errors=True)
    times: dict[str, list[float]] = {name: [] for name in STUDENTS}
    quick = {"steps": TRIAL, "log_every": 2, "eval.samples": 1, "eval.linear_samples": 0}
    quick |= {"eval.latent_samples": 0, "eval.every": TRIAL, "checkpoint.every": TRIAL, "panels.every": TRIAL}
    for trial in range(TRIALS):
        for name, changes in STUDENTS.items():
            print(f"timing updates, {name}, {trial + 1} of {TRIALS} ...", file=sys.stderr)
            rows = runs.train("distill", folder / f"{name} {trial}", common | quick, more, changes)
            steps = [
                row["train/all/step_seconds"] for row in rows.values() if "train/all/step_seconds" in row
            ]
            times[name] += steps[2:]  # the first ones compile
    seconds = {name: statistics.median(values) for name, values in times.items()}
    files.write_json(kept, {"asked": asked, "seconds": seconds})
    return seconds


def decoders(folders: dict[str, pathlib.Path], rounds: int = 9) -> dict[str, Any]:
    """Times the decoders in turns; returns their parameters, seconds, and medians of speed by bucket.

    The speed is relative to the teacher's in the same round.
    """
    found: dict[str, Any] = {name: {"seconds": {}, "speed": {}} for name in folders}
    vaes = {name: load_vae(str(folder)) for name, folder in folders.items()}
    for name, vae in vaes.items():
        found[name]["parameters"] = sum(x.size for x in jax.tree.leaves(vae.params["decoder"]))
    for bucket, (b, *size, _) in BUCKETS.items():
        times: dict[str, list[float]] = {name: [] for name in vaes}
        calls = {}
        for name, vae in vaes.items():
            model, is_video = Autoencoder(vae.architecture), size[0] > 1
            z = jnp.asarray(
                np.random.default_rng(0).normal(size=(b, *vae.architecture.latent_shape(*size))), jnp.float32
            )
            decode = jax.jit(lambda p, z, m=model, v=is_video: m.apply({"params": p}, z, v, method="decode"))
            params = jax.tree.map(jnp.asarray, vae.params)
            calls[name] = lambda f=decode, p=params, z=z: jax.block_until_ready(f(p, z))
            calls[name]()
        for _ in range(rounds):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
        for name in vaes:
            ratios = [t / own for t, own in zip(times["teacher"], times[name], strict=True)]
            found[name]["seconds"][bucket] = statistics.median(times[name])
            found[name]["speed"][bucket] = statistics.median(ratios)
    return found


def print_table(results: dict[str, Any]) -> None:
    """Prints the table, and each target with what was reached."""
    scores, built = results["scores"], results["decoders"]
    image, video = BUCKETS
    print("PSNR in dB and flicker in levels, on media that no run has seen")
    print(
        "| decoder | parameters | images | clips | flicker | speed: images | clips | updates | s an update |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, row in scores.items():
        cells = [f"{row[image]['psnr']:.2f}", f"{row[video]['psnr']:.2f}", f"{row[video]['flicker']:.3f}"]
        if name in built:
            size = f"{built[name]['parameters']:,}"
            cells = [size, *cells, *(f"{built[name]['speed'][bucket]:.1f}" for bucket in BUCKETS)]
        else:
            cells = ["-", *cells, "-", "-"]
        cells += [
            str(results["steps"].get(name, "-")),
            f"{results['update_seconds'][name]:.2f}" if name in results["steps"] else "-",
        ]
        print(f"| {name} | {' | '.join(cells)} |")
    teacher, student, pixels = (scores[name] for name in ("teacher", *STUDENTS))
    gain = {b: teacher[b]["psnr"] - scores["linear codec"][b]["psnr"] for b in BUCKETS}
    size = built["student"]["parameters"] / built["teacher"]["parameters"]
    speed = min(built["student"]["speed"].values())
    loss = {b: teacher[b]["psnr"] - student[b]["psnr"] for b in BUCKETS}
    flicker = student[video]["flicker"] / teacher[video]["flicker"]
    better = {b: student[b]["psnr"] - pixels[b]["psnr"] for b in BUCKETS}
    checks = [
        ("teacher above the linear codec, dB", min(gain.values()), ">=", LEAST_GAIN),
        ("parameters of the student's decoder, share of the teacher's", size, "<=", MOST_PARAMETERS),
        ("speed of the student's decoder, times the teacher's", speed, ">=", LEAST_SPEED),
        ("student below its teacher, dB", max(loss.values()), "<=", MOST_LOSS),
        ("flicker of the student, times the teacher's", flicker, "<=", MOST_FLICKER),
        ("student above pixels alone, images, dB", better[image], ">=", 0.0),
        ("student above pixels alone, clips, dB", better[video], ">=", 0.0),
    ]
    print()
    for label, value, sign, target in checks:
        met = value >= target if sign == ">=" else value <= target
        print(f"{label}: {value:.2f}; target {sign} {target:g}: {'met' if met else 'missed'}")


def draw(
    path: pathlib.Path, results: dict[str, Any], folders: dict[str, pathlib.Path], test: pathlib.Path
) -> None:
    """Draws the curves of both students, with their teacher's scores, above samples of all decoders."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure: Any = pyplot.figure(figsize=(13, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 3))
    for axes, bucket in zip(upper.subplots(1, 2), BUCKETS, strict=True):
        for name, curve in results["curves"].items():
            minutes = [seconds / 60 for seconds, _ in curve]
            values = [row[f"{bucket}/psnr"] for _, row in curve]
            axes.plot(minutes[1:], values[1:], "o-", label=name, markersize=3)  # the first is untrained
        axes.axhline(
            results["curves"]["student"][-1][1][f"{bucket}/psnr_start"], color="black", label="teacher"
        )
        axes.set_title(f"PSNR of held-out samples of the students' own media, {bucket}, dB", fontsize=9)
        axes.set_xlabel("minutes of training")
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    files_shown = sorted(test.glob("*.png"))[:COLUMNS]
    frames = np.stack([np.asarray(Image.open(file))[:SIDE, :SIDE] for file in files_shown])
    shown = {"original": frames}
    for name, folder in folders.items():
        codec = vaejax.load(folder)
        shown[name] = np.asarray(codec.decode(codec.encode(frames[:, None], normalize=False)))[:, 0]
    axes = lower.subplots(1, 1)
    axes.imshow(np.concatenate([np.concatenate(list(row), axis=1) for row in shown.values()]))
    axes.set_yticks([SIDE * (i + 0.5) for i in range(len(shown))], list(shown))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
