"""Fine-tuning on other media: what it gains there, what it costs elsewhere, and how far the latents drift.

    python benchmarks/finetuning.py --out=DIR [--family=wan] [--config.KEY=VALUE ...]

Trains a small VAE of Wan's architecture on the demo's photos and clips ("natural"). Then fine-tunes it for
equal numbers of updates: the decoder alone on screens (see screens.py) or further on natural media, and both
halves on screens, without and with an anchor. Every model is scored on photos and clips of both kinds that no
run has seen. Prints a table; DIR/finetuning.json has all numbers, DIR/finetuning.png shows them. The flags
--config.KEY=VALUE apply to all runs. Rerun the same command to continue. Requires matplotlib.
"""

import argparse
import json
import pathlib
import sys
from typing import Any, NamedTuple

import natural
import numpy as np
import runs
import screens
from PIL import Image

import vaejax
from vaejax import cli, files

TARGET = (
    0.5  # dB that the decoder gains on screens, more than it does if its training on natural media goes on
)
NATURAL = '{"natural": {"kind": "demo"}}'
TEST_PHOTOS, TEST_CLIPS = 96, 32  # screens that no run sees
COMMON = {
    "data.fps": screens.FPS,
    "data.workers": 1,
    "loss.likelihood": "gaussian",  # squared error, which PSNR measures
    "loss.weights.perceptual": 0.0,
    "loss.weights.adversarial": 0.0,
    "ema.decay": 0.98,
}
BUCKETS = ("image_64x64", "video_5x64x64")


class Family(NamedTuple):
    """What trains a small model of a family on two cores, from random weights.

    Attributes:
      photos, clips: photos per update, and updates per clip.
      learning_rate: peak learning rate of the base.
      base_steps: updates of the base.
      steps: updates of fine-tuning, about 15 minutes.
    """

    photos: int
    clips: int
    learning_rate: float
    base_steps: int
    steps: int

    def buckets(self) -> str:
        """The setting `data.buckets`."""
        image, video = BUCKETS
        return json.dumps({image: {"batch": self.photos}, video: {"batch": 1, "every": self.clips}})


FAMILIES = {
    "wan": Family(photos=4, clips=2, learning_rate=1e-3, base_steps=1500, steps=1500),
    "vaejax": Family(photos=8, clips=1, learning_rate=1e-3, base_steps=2500, steps=2500),
}
TUNED = {
    "model.dtype": "float32",
    "model.remat": "()",
    "optim.learning_rate": 5e-4,
    "optim.warmup": 20,
    "checkpoint.best": "mean/psnr",
    "data.holdout": 0.1,
}
BOTH = {"optim.train": "('encoder','decoder')"}
# Name -> (kind of media, settings). The configuration `finetune` trains the decoder alone.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "decoder, screens": ("screens", {}),
    "decoder, natural": ("natural", {}),
    "both, screens": ("screens", BOTH),
    "both, screens, anchor 10": ("screens", BOTH | {"loss.weights.anchor": 10.0}),
}
KINDS = ("screens", "natural")
CROSSED = ("psnr_old_decoder", "psnr_old_latents")
COLUMNS, SIDE = 12, 80  # screens in the figure, and their side in pixels


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for media, runs and results")
    parser.add_argument(
        "--family", choices=list(FAMILIES), default="wan", help="networks, of size tiny (default: wan)"
    )
    parser.add_argument(
        "--base-steps",
        type=cli.at_least(1),
        help="updates from random weights (default: wan 1500, vaejax 2500)",
    )
    parser.add_argument(
        "--steps", type=cli.at_least(1), help="updates of fine-tuning (default: wan 1500, vaejax 2500)"
    )
    args, more = parser.parse_known_args()
    return cli.run(lambda: measure(args, more))


def measure(args: argparse.Namespace, more: list[str]) -> None:
    """Makes the media, trains, scores, and writes the results."""
    out = cli.made_folder(args.out)
    screens.write(out / "media" / "screens", photos=400, clips=48, seed=0)
    tests = {kind: out / "media" / f"{kind}_test" for kind in KINDS}
    screens.write(tests["screens"], TEST_PHOTOS, TEST_CLIPS, seed=1, frames=24)
    natural.write(tests["natural"])

    base, family = out / "base", FAMILIES[args.family]
    steps = {"base": args.base_steps or family.base_steps}
    steps |= {name: args.steps or family.steps for name in VARIANTS}
    common = COMMON | {"data.buckets": family.buckets()}
    folders = {"base": base} | {name: out / name.replace(", ", "-").replace(" ", "") for name in VARIANTS}
    print(f"training {base} ...", file=sys.stderr)
    begun = {
        "model.family": args.family,
        "model.size": "tiny",
        "data.sources": NATURAL,
        "optim.learning_rate": family.learning_rate,
        "optim.warmup": 50,
    }
    runs.train("demo", base, common | begun | runs.every(steps["base"]), more)
    drift = {}
    for name, (kind, changes) in VARIANTS.items():
        print(f"fine-tuning {folders[name]} ...", file=sys.stderr)
        source = {"natural": {"data.sources": NATURAL, "data.zoom": 4.0}}
        source["screens"] = {"data.media": out / "media" / "screens", "data.zoom": 1.6}
        settings = common | TUNED | source[kind] | changes | {"init": base} | runs.every(steps[name])
        scores = runs.train("finetune", folders[name], settings, more)[steps[name]]
        drift[name] = {
            bucket: {
                key.rsplit("/", 1)[1]: value
                for key, value in scores.items()
                if key.startswith((f"eval/{bucket}/drift", f"eval/{bucket}/psnr"))
            }
            for bucket in BUCKETS
        }
    scored = {
        kind: runs.evaluate(folders, tests[kind], out / f"scores_{kind}", [steps, more]) for kind in KINDS
    }
    psnr = {
        name: {kind: {bucket: scored[kind][name][bucket]["psnr"] for bucket in BUCKETS} for kind in KINDS}
        for name in (*folders, "linear codec")
    }
    results = {"steps": steps, "flags": more, "psnr": psnr, "own_media": drift}
    files.write_json(out / "finetuning.json", results)
    print_table(results)
    draw(out / "finetuning.png", results, folders, tests["screens"])
    print(f"figure: {out / 'finetuning.png'}\nscores: {out / 'finetuning.json'}")


def print_table(results: dict[str, Any]) -> None:
    """Prints both tables and the verdict."""
    psnr, own = results["psnr"], results["own_media"]
    print("PSNR in dB (change by fine-tuning) on media that no run has seen")
    print("| model | " + " | ".join(f"{kind}, {bucket}" for kind in KINDS for bucket in BUCKETS) + " |")
    print("|---|" + "---|" * len(KINDS) * len(BUCKETS))
    for name, scores in psnr.items():
        cells = []
        for kind in KINDS:
            for bucket, value in scores[kind].items():
                change = f" ({value - psnr['base'][kind][bucket]:+.2f})" if name in own else ""
                cells.append(f"{value:.2f}{change}")
        print(f"| {name} | {' | '.join(cells)} |")
    print("\nLatents against those of the base, on held-out media of the run's own kind; PSNR in dB")
    print("| run | bucket | drift | shift | scale | before | after | old decoder | old latents |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, buckets in own.items():
        for bucket, row in buckets.items():
            cells = [f"{row[key]:.4f}" for key in ("drift", "drift_shift", "drift_scale")]
            cells += [f"{row[key]:.2f}" for key in ("psnr_start", "psnr")]
            cells += [f"{row[key]:.2f}" if key in row else "-" for key in CROSSED]
            print(f"| {name} | {bucket} | {' | '.join(cells)} |")
    gains = {kind: gain(psnr, f"decoder, {kind}") for kind in KINDS}
    more = gains["screens"] - gains["natural"]
    print(
        f"\nthe decoder gains {gains['screens']:+.2f} dB on screens if trained on screens, and"
        f" {gains['natural']:+.2f} dB if trained on natural media: {more:.2f} dB more; target {TARGET}:"
        f" {'met' if more >= TARGET else 'missed'}"
    )


def gain(psnr: dict[str, Any], name: str, kind: str = "screens") -> float:
    """The change of a model's PSNR by fine-tuning, the mean over buckets, in dB."""
    return float(np.mean([psnr[name][kind][bucket] - psnr["base"][kind][bucket] for bucket in BUCKETS]))


def draw(
    path: pathlib.Path, results: dict[str, Any], folders: dict[str, pathlib.Path], test: pathlib.Path
) -> None:
    """Draws the changes of PSNR, what old decoders make of new latents, and some screens."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure: Any = pyplot.figure(figsize=(13, 9), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 3))
    left, right = upper.subplots(1, 2)
    places = np.arange(len(VARIANTS))
    for shift, kind in ((0.2, "screens"), (-0.2, "natural")):
        changes = [gain(results["psnr"], name, kind) for name in VARIANTS]
        bars = left.barh(places + shift, changes, 0.38, label=f"on {kind}")
        left.bar_label(bars, fmt="%+.2f", padding=3, fontsize=8)
    left.set_title("change of PSNR on unseen media, dB", fontsize=10)
    rows = results["own_media"]
    for shift, key, label in (
        (0.2, "psnr_old_decoder", "old decoder, new latents"),
        (-0.2, "psnr_old_latents", "new decoder, old latents"),
    ):
        # With a frozen encoder, old and new latents are the same.
        other = {"psnr_old_decoder": "psnr_start", "psnr_old_latents": "psnr"}[key]
        changes = [
            np.mean([row.get(key, row[other]) - row["psnr_start"] for row in rows[name].values()])
            for name in VARIANTS
        ]
        bars = right.barh(places + shift, changes, 0.38, label=label)
        right.bar_label(bars, fmt="%+.2f", padding=3, fontsize=8)
    drifts = [max(row["drift"] for row in rows[name].values()) for name in VARIANTS]
    labels = [f"{name}\ndrift {drift:.3f}" for name, drift in zip(VARIANTS, drifts, strict=True)]
    right.set_title("PSNR against the base, each on its own media, dB", fontsize=10)
    for axes, names in ((left, list(VARIANTS)), (right, labels)):
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    photos = [np.asarray(Image.open(file)) for file in sorted(test.glob("*.png"))[:COLUMNS]]
    photos = np.stack([photo[:SIDE, :SIDE] for photo in photos])
    shown = {"original": photos}
    for name in ("base", "decoder, natural", "decoder, screens", "both, screens"):
        codec = vaejax.load(folders[name])
        shown[name] = np.asarray(codec.decode(codec.encode(photos[:, None], normalize=False)))[:, 0]
    axes = lower.subplots(1, 1)
    axes.imshow(np.concatenate([np.concatenate(list(row), axis=1) for row in shown.values()]))
    axes.set_yticks([SIDE * (i + 0.5) for i in range(len(shown))], list(shown))
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
