"""Whether the probe ranks latents that are known to differ. At most twelve minutes on two cores.

    python benchmarks/probe_order.py --checkpoint=runs/demo --data=FOLDER --out=DIR

Scores one codec's latents in three forms: unchanged; mixed by a random orthogonal matrix over 8x8 positions,
which keeps the information but moves it; and with white noise of equal variance added. Prints a table, and
writes DIR/order.json and a grid of samples of each. Exits with 1 unless the unchanged latents score better
than both others by more than twice the spread between seeds.
"""

import argparse
import math
import sys
import time

from PIL import Image

from vaejax import cli, files
from vaejax.errors import FAILED
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.features import Features
from vaejax.probe import controls
from vaejax.probe.grid import grid
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import open_media
from vaejax.probe.score import Probe
from vaejax.runtime import cache

WORSE = {"mixed": controls.mixed, "noise": controls.noisy}


def apart(one: dict, other: dict) -> float:
    """Returns how far the second mean exceeds the first, in units of the larger spread."""
    return (other["mean"] - one["mean"]) / max(one["spread"], other["spread"])


def summary(one: dict, digits: int = 4) -> str:
    """Formats a mean and its spread."""
    return f"{one['mean']:.{digits}f} ± {one['spread']:.{digits}f}"


def measure(args: argparse.Namespace) -> int:
    """Scores the three forms, prints a table, and returns the exit code."""
    out = cli.made_folder(args.out)
    cache.keep_compiled()
    begin = time.monotonic()
    preset = PRESETS[args.preset]
    codec = open_codec(args.checkpoint)
    probe = Probe(open_media(args.data, preset), preset, Features(), progress=True)
    latents = probe.latents(codec)
    spaces = {"as they are": (latents, codec.decode)}
    spaces |= {name: change(latents, codec.decode) for name, change in WORSE.items()}
    scores = {}
    for name, (these, decode) in spaces.items():
        scores[name], shown = probe.score(these, decode, range(args.seeds))
        Image.fromarray(grid(shown)).save(out / f"{name.replace(' ', '_')}.png")
    seconds = time.monotonic() - begin
    files.write_json(out / "order.json", {"scores": scores, "time": {"seconds": seconds}})

    print("| latents | kernel distance | floor | Fréchet | floor | held-out loss | explained |")
    print("|---|---|---|---|---|---|---|")
    for name, one in scores.items():
        floor = one["floor"]
        print(
            f"| {name} | {summary(one['kernel'])} | {floor['kernel']:.4f} | {summary(one['frechet'], 2)}"
            f" | {floor['frechet']:.2f} | {summary(one['loss'])} | {summary(one['explained'])} |"
        )
    least = math.inf
    for key in ("kernel", "frechet", "loss"):
        distances = {name: apart(scores["as they are"][key], scores[name][key]) for name in WORSE}
        print(f"{key}: " + ", ".join(f"{name} is worse by {d:.1f} spreads" for name, d in distances.items()))
        least = min(distances.values()) if key == "kernel" else least
    print(f"{seconds / 60:.1f} minutes")
    return 0 if least > 2 else FAILED


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a run's --workdir, or another codec")
    parser.add_argument("--data", required=True, help="a folder of photos")
    parser.add_argument("--out", required=True, help="a folder")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    return cli.run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
