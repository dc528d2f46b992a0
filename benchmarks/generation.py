"""Reconstruction against generation: scores small VAEs that differ in one setting by PSNR and the probe.

    python benchmarks/generation.py --out=DIR --config.data.media=FOLDER [--steps=400] [--seeds=2]

Trains the demo without its perceptual and adversarial terms once per variant, probes the latents of its image
bucket, and prints a table and the rank correlation of both scores. DIR/generation.png plots them, and
DIR/generation.json has the numbers. The demo's own media hold out two photos, too few to generate: pass a
folder of hundreds. Rerun the same command to continue. Requires matplotlib and scipy.
"""

import argparse
import pathlib
import sys

import runs
from scipy import stats

from vaejax import cli, files
from vaejax.data import sources
from vaejax.data.bucket import parse_buckets
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.evaluate.features import Features
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import Media
from vaejax.probe.score import Probe
from vaejax.rundir import folder as run
from vaejax.runtime import cache

SETTING = {
    "loss.weights.perceptual": 0.0,
    "loss.weights.adversarial": 0.0,
    "eval.linear_samples": 0,
    "panels.every": 10_000,
}
VARIANTS = {
    "the demo's": {},
    "KL 1e-4": {"loss.weights.kl": 1e-4},
    "KL 1e-2": {"loss.weights.kl": 1e-2},
    "4 channels": {"model.latent_channels": 4},
    "8 channels": {"model.latent_channels": 8},
    "32 channels": {"model.latent_channels": 32},
    "equivariance 0.5": {"loss.weights.equivariance": 0.5},
}


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for runs and results")
    parser.add_argument("--steps", type=int, default=400, help="updates per VAE (default: 400)")
    parser.add_argument(
        "--seeds", type=cli.at_least(2), default=2, help="models that the probe trains per VAE (default: 2)"
    )
    args, more = parser.parse_known_args()
    return cli.run(lambda: measure(args, more))


def measure(args: argparse.Namespace, more: list[str]) -> None:
    """Trains and probes every variant, and writes the results."""
    out = cli.made_folder(args.out)
    cache.keep_compiled()
    every = {name: args.steps for name in ("steps", "eval.every", "checkpoint.every")}
    folders = {name: out / name.replace(" ", "_").replace("'", "") for name in VARIANTS}
    quality = {}
    for name, changes in VARIANTS.items():
        steps = runs.train("demo", folders[name], SETTING | every | changes, more)
        quality[name] = {key: value for key, value in steps[args.steps].items() if key.startswith("eval/")}

    config = run.config(str(folders["the demo's"]))
    buckets = parse_buckets(config.data.buckets, config.model.spatial_factor, config.model.temporal_factor)
    bucket = next(bucket for bucket in buckets if bucket.frames == 1)
    probe = Probe(
        Media(sources.open_sources(config.data), bucket, config.data),
        PRESETS["cpu"],
        Features(),
        progress=True,
    )
    rows = {}
    for name, folder in folders.items():
        kept = out / f"{folder.name}.json"
        asked = {"steps": args.steps, "seeds": args.seeds}
        if kept.exists() and (row := files.read_json(kept))["asked"] == asked:
            rows[name] = row
            continue
        codec = VaeCodec.open(str(folder))
        scores, _ = probe.score(probe.latents(codec), codec.decode, range(args.seeds))
        rows[name] = {
            "asked": asked,
            "psnr": quality[name][f"eval/{bucket.name}/psnr"],
            "psnr_videos": quality[name]["eval/video_9x64x64/psnr"],
            "kl": quality[name][f"eval/{bucket.name}/kl"],
            **{key: scores[key] for key in ("kernel", "frechet", "loss", "explained", "floor")},
        }
        files.write_json(kept, rows[name])
    print_table(rows)
    files.write_json(out / "generation.json", rows)
    draw(out / "generation.png", rows, bucket.name)


def print_table(rows: dict[str, dict]) -> None:
    """Prints the table and the rank correlations."""
    print("| VAE | PSNR images | videos | KL | kernel distance | floor | Fréchet | explained |")
    print("|---|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        kernel, frechet, floor = row["kernel"], row["frechet"]["mean"], row["floor"]["kernel"]
        print(
            f"| {name} | {row['psnr']:.2f} | {row['psnr_videos']:.2f} | {row['kl']:.3f}"
            f" | {kernel['mean']:.3f} ± {kernel['spread']:.3f} | {floor:.3f} | {frechet:.1f}"
            f" | {row['explained']['mean']:.3f} |"
        )
    psnr = [row["psnr"] for row in rows.values()]
    for key, sign in (("kernel", -1), ("frechet", -1), ("explained", 1)):
        found = stats.spearmanr(psnr, [sign * row[key]["mean"] for row in rows.values()])
        print(
            f"rank correlation (Spearman) of PSNR with {key}, + if both improve: {found.statistic:+.2f}"
            f" (p = {found.pvalue:.2f}, {len(rows)} VAEs)"
        )


def draw(path: pathlib.Path, rows: dict[str, dict], bucket: str) -> None:
    """Plots kernel distance, with its spread and floor, against PSNR, one point per VAE."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for name, row in rows.items():
        kernel = row["kernel"]
        (point,) = axes.plot(row["psnr"], kernel["mean"], "o", label=name)
        axes.errorbar(row["psnr"], kernel["mean"], kernel["spread"], color=point.get_color(), capsize=3)
        axes.plot(row["psnr"], row["floor"]["kernel"], "_", color=point.get_color())
    axes.set_xlabel(f"PSNR of held-out samples, {bucket}, dB (better →)")
    axes.set_ylabel("kernel distance of generated samples (better ↓; _ : floor)")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
