"""Whether the probe ranks latents that are known to differ; takes at most twelve minutes on two cores.

    python benchmarks/probe_order.py --checkpoint=runs/demo --data=FOLDER --out=DIR

Scores one codec's latents in three forms: unchanged; mixed by a random orthogonal matrix over 8x8 positions,
which keeps the information but moves it; and with white noise of equal variance added. Prints a table, and
writes DIR/order.json and a grid of samples of each. Exits with 1 unless the unchanged latents score better
than both others by more than twice the spread between seeds.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from vaejax import cli, files
from vaejax.errors import FAILED
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.features import Features
from vaejax.probe.latents import Latents
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import open_media
from vaejax.probe.score import Decoder, Probe
from vaejax.rundir.panels import sample_grid
from vaejax.runtime import cache

WINDOW = 8  # side of a window of latent pixels that are mixed


def mix_positions(latents: Latents, decode: Decoder, seed: int = 0) -> tuple[Latents, Decoder]:
    """Mixes the 8x8 positions of each window by a random orthogonal matrix; the decoder inverts it.

    The matrix is uniform over the orthogonal group, and all channels, frames and windows share it. The
    information of the latents stays, but moves to other positions.

    Raises:
      ValueError: if h or w is not a multiple of 8.
    """
    matrix, triangle = np.linalg.qr(np.random.default_rng(seed).normal(size=(WINDOW**2, WINDOW**2)))
    matrix *= np.sign(np.diag(triangle))  # makes the distribution uniform (Mezzadri 2007)

    def mix(z: np.ndarray, matrix: np.ndarray = matrix) -> np.ndarray:
        n, t, h, w, c = z.shape
        if h % WINDOW or w % WINDOW:
            raise ValueError(f"latents of {h}x{w}; accepted: multiples of {WINDOW}")
        windows = z.reshape(n, t, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).swapaxes(3, 4)
        windows = windows.reshape(n, t, h // WINDOW, w // WINDOW, WINDOW**2, c)
        windows = np.einsum("pq,nthwqc->nthwpc", matrix, windows, optimize=True)
        windows = windows.reshape(n, t, h // WINDOW, w // WINDOW, WINDOW, WINDOW, c).swapaxes(3, 4)
        return windows.reshape(z.shape).astype(np.float32)

    return _transform(latents, mix), lambda z: decode(mix(z, matrix.T))


def add_noise(latents: Latents, decode: Decoder, seed: int = 0) -> tuple[Latents, Decoder]:
    """Adds white noise with the variance of each channel, which doubles it; the decoder stays the same."""
    rng = np.random.default_rng(seed)

    def add(z: np.ndarray) -> np.ndarray:
        return (z + latents.std * rng.normal(size=z.shape)).astype(np.float32)

    return _transform(latents, add), decode


def _transform(latents: Latents, change: Callable[[np.ndarray], np.ndarray]) -> Latents:
    train, held_out = (change(latents.denormalize(z)) for z in (latents.train, latents.held_out))
    return Latents.normalized(train, held_out, latents.labels, latents.held_out_labels)


WORSE = {"mixed": mix_positions, "noise": add_noise}


def margin(one: dict, other: dict) -> float:
    """How far the second mean exceeds the first, in units of the larger spread."""
    return (other["mean"] - one["mean"]) / max(one["spread"], other["spread"])


def summary(score: dict, digits: int = 4) -> str:
    """A mean and its spread."""
    return f"{score['mean']:.{digits}f} ± {score['spread']:.{digits}f}"


def measure(args: argparse.Namespace) -> int:
    """Scores the three forms, prints a table, and returns the exit code."""
    out = cli.made_folder(args.out)
    cache.keep_compiled()
    begin = time.monotonic()
    preset = PRESETS[args.preset]
    if args.bucket:
        preset = dataclasses.replace(preset, bucket=args.bucket)
    codec = open_codec(args.checkpoint)
    probe = Probe(open_media(args.data, preset), preset, Features(), progress=True)
    latents = probe.latents(codec)
    forms = {"as they are": (latents, codec.decode)}
    forms |= {name: change(latents, codec.decode) for name, change in WORSE.items()}
    scores = {}
    for name, (form, decode) in forms.items():
        scores[name], shown = probe.score(form, decode, range(args.seeds))
        Image.fromarray(sample_grid(shown)).save(out / f"{name.replace(' ', '_')}.png")
    seconds = time.monotonic() - begin
    files.write_json(out / "order.json", {"scores": scores, "time": {"seconds": seconds}})

    print("| latents | kernel distance | floor | Fréchet | floor | held-out loss | explained |")
    print("|---|---|---|---|---|---|---|")
    for name, score in scores.items():
        floor = score["floor"]
        print(
            f"| {name} | {summary(score['kernel'])} | {floor['kernel']:.4f} | {summary(score['frechet'], 2)}"
            f" | {floor['frechet']:.2f} | {summary(score['loss'])} | {summary(score['explained'])} |"
        )
    least = math.inf
    for key in ("kernel", "frechet", "loss"):
        margins = {name: margin(scores["as they are"][key], scores[name][key]) for name in WORSE}
        print(f"{key}: " + ", ".join(f"{name} is worse by {d:.1f} spreads" for name, d in margins.items()))
        least = min(margins.values()) if key == "kernel" else least
    print(f"{seconds / 60:.1f} minutes")
    return 0 if least > 2 else FAILED


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a run's --workdir, or another codec")
    parser.add_argument("--data", required=True, help="a folder of photos or clips")
    parser.add_argument("--out", required=True, help="the output folder")
    parser.add_argument("--bucket", default="", help="image_HxW or video_TxHxW (default: the preset's)")
    parser.add_argument("--preset", choices=PRESETS, default="cpu", help="the budget (default: cpu)")
    parser.add_argument(
        "--seeds", type=cli.at_least(2), default=3, help="models trained per form of latents (default: 3)"
    )
    args = parser.parse_args()
    return cli.run(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
