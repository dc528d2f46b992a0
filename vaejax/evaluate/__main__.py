"""Scores codecs: python -m vaejax.evaluate --checkpoint=DIR --data=FOLDER --out=OUT.

Leaves OUT/results.json, every number with its sample count, its 95% interval and the settings that it depends
on, and OUT/report.html, one page to look at that needs no other file.
"""

import argparse
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

import vaejax
from vaejax import cli, files
from vaejax.codec import load as trained
from vaejax.config import builders, defaults
from vaejax.data import sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.errors import InputError
from vaejax.evaluate import html_report as page
from vaejax.evaluate import latent_statistics as normalisation
from vaejax.evaluate import scorer as scores
from vaejax.evaluate.codecs.registry import NAMES, Codec, check_shape, normalise, open_codec
from vaejax.evaluate.features import SHORTEST_CLIP, Features
from vaejax.evaluate.samples import Samples, open_samples
from vaejax.evaluate.scorer import Judge, Tally
from vaejax.networks import weights
from vaejax.networks.lpips import NETWORKS
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import cache
from vaejax.runtime import mesh as sharding

FEATURES = {
    "efficientnet": "EfficientNet-Lite0 of ImageNet, 1280 features, antialiased bilinear to 224x224",
    "i3d": "I3D of Kinetics-400, 400 logits, antialiased bilinear to 224x224",
    "inception": "Inception-v3 of FID, 2048 features, 8 bits, bilinear to 299x299",
}
DEFINITIONS = {
    "frames": "float32 in [-1, 1], clipped, not rounded",
    "psnr": "of each frame, exact ones counted as 100 dB unless all are, then averaged",
    "lpips": "version 0.1, every frame, float32",
    "image_distances": "of a clip the middle frame",
    "kid, kvd": "cubic kernel (x·y/d + 1)³; pairs of a sample with its own reconstruction are left out",
    "interval": "95%, bootstrap over samples: percentiles for means, ±1.96 standard deviations for distances",
    "parts": {
        "samples": scores.PARTS,
        "chunk": "half of the latent frames, rounded down",
        "tile": f"{scores.TILE} latent pixels or 5/8 of the longer side, by fours; a quarter overlaps",
    },
}
FITTED = ("linear", "jpeg:matched")  # codecs that learn from training samples, opened after the others
WORST, TYPICAL = 2, 2  # samples of a bucket that the page shows
NAMED = 5  # worst samples of a codec that results.json names


def evaluate(
    names: Sequence[str],
    data: str = "",
    buckets: Sequence[str] = (),
    samples: int = 0,
    fps: float = 0.0,
    batch: int = 8,
    seed: int = 0,
    inception: str = "",
) -> tuple[dict[str, Any], dict[str, list[page.Shown]]]:
    """Scores codecs on the same samples.

    Args:
      names: of codecs, see `codec.open_codec`. The first run among them gives the default samples, buckets
        and frame rate, and the training samples of `FITTED` codecs; their size is the first one's that has
        latents. Without a run, an export gives buckets and frame rate.
      data: FOLDER or 'tfds:NAME'; '' takes what the run held out.
      buckets: names; () takes the run's.
      samples: of a bucket, at most; 0 takes all of `data`, or as many as the run evaluates.
      fps: frames a second of clips; 0 takes the run's.
      batch: samples at once; no score depends on it.
      seed: of the bootstrap and of random weights.
      inception: the file of the Inception weights of FID; '' leaves rFID out.

    Returns:
      What results.json holds, and what the page shows of each bucket.

    Raises:
      InputError: in one line, before anything is computed where that can be known.
    """
    started = time.monotonic()
    folders = [name for name in names if name not in ("identity", "linear")]  # whatever folders there are
    folders = [name for name in folders if os.path.isdir(os.path.expanduser(name))]
    run_name = next((name for name in folders if not trained.exported_config(name)), "")
    config = RunFolder(run_name).read_config() if run_name else _trained_on(folders)
    if fps:
        config.data.fps = fps
    if data:
        found = open_samples(data, config.data, samples)
    elif run_name:
        found = Samples(sources.open_sources(config.data), config.data, limit=samples or config.eval.samples)
    else:
        raise InputError(
            "--data is missing, and only a run knows what it held out; accepted: --data=FOLDER or tfds:NAME"
        )
    chosen = _buckets(buckets, config, found, asked=bool(buckets))
    mesh = sharding.make_mesh(ConfigDict({"data": 0, "fsdp": 1, "space": 1}))
    batch += -batch % mesh.size
    codecs = _open(names, run_name, chosen, found, mesh, seed)
    judge = Judge(mesh, {network: builders.load_lpips(network) for network in NETWORKS})
    networks = _networks(inception, clips=any(bucket.frames >= SHORTEST_CLIP for bucket in chosen))
    settings = {
        "data": data or "held out by the run",
        "run": run_name,
        "cut": {"files": "each once, the middle" if data else "as the run evaluates", **found.settings},
        "batch": batch,
        "devices": f"{mesh.size} {jax.devices()[0].device_kind}",
        "seed": seed,
        "codecs": {codec.name: codec.settings for codec in codecs},
        "features": {name: FEATURES[name] for name in networks},
        "versions": {"vaejax": vaejax.__version__, "jax": jax.__version__, "numpy": np.__version__},
        **DEFINITIONS,
    }
    scored, shown, seconds = {}, {}, {codec.name: 0.0 for codec in codecs}
    total = sum(found.count(bucket) for bucket in chosen)
    with tqdm(total=total, unit=" samples", file=sys.stderr) as progress:
        for bucket in chosen:
            progress.set_description(bucket.name)
            tallies, scored[bucket.name], places, named = _score(
                codecs, bucket, found, judge, networks, batch, seed, progress
            )
            for tally in tallies:
                seconds[tally.codec.name] += tally.seconds
            shown[bucket.name] = _show(tallies, bucket, found, places, named)
    told = {
        "codecs": [codec.name for codec in codecs],
        "buckets": [bucket.name for bucket in chosen],
        "results": scored,
        "settings": settings,
    }
    statistics = {
        codec.name: normalisation.of_run(codec, codec.name, codec.settings["step"])
        for codec in codecs
        if codec.settings["kind"] == "vaejax"
    }
    told["training_latents"] = {name: one for name, one in statistics.items() if one}
    told["time"] = {"seconds": time.monotonic() - started, "seconds_encoding_and_decoding": seconds}
    return told, shown


def _trained_on(folders: Sequence[str]) -> ConfigDict:
    """The defaults, with the buckets and the frame rate that the first of these exports tells of."""
    config = defaults()
    for name in folders[:1]:
        training = (trained.exported_config(name) or {}).get("training", {})
        config.data.fps = training.get("fps", config.data.fps)
        config.data.buckets = ConfigDict({bucket: {"batch": 1} for bucket in training.get("buckets", ())})
    return config


def _networks(inception: str, clips: bool) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """What gives the features of frames (B, T, H, W, 3), by network; that its weights are there is tried."""
    networks, black = Features(inception), np.zeros((1, SHORTEST_CLIP, 32, 32, 3), np.uint8)
    found = {"efficientnet": networks.images}
    if clips:
        found["i3d"] = networks.clips
    if inception:
        found["inception"] = networks.inception
    for name, network in found.items():
        try:
            network(black[:, : SHORTEST_CLIP if name == "i3d" else 1])
        except weights.BadWeights as error:
            flag = f"--inception={inception}: " if name == "inception" else f"features of {name}: "
            raise InputError(f"{flag}{error}; accepted: its weights") from error
    return found


def _score(
    codecs: Sequence[Codec],
    bucket: Bucket,
    found: Samples,
    judge: Judge,
    networks: Mapping[str, Callable[[np.ndarray], np.ndarray]],
    batch: int,
    seed: int,
    progress: tqdm,
) -> tuple[list[Tally], dict[str, Any], list[int], list[str]]:
    """Every codec's scores on a bucket, in one pass over its samples."""
    middle = slice(bucket.frames // 2, bucket.frames // 2 + 1)
    features = {name: lambda x, see=see: see(x[:, middle]) for name, see in networks.items() if name != "i3d"}
    if bucket.frames >= SHORTEST_CLIP:
        features["i3d"] = networks["i3d"]
    shape = bucket.frames, bucket.height, bucket.width
    tallies = [Tally(codec, shape, judge, batch, features) for codec in codecs]
    originals: dict[str, list[np.ndarray]] = {name: [] for name in features}
    places, named = [], []
    for frames, names, numbers in found.batches(bucket, batch):
        for name, network in features.items():
            originals[name].append(network(normalise(frames)))
        labels = [found.label(name) for name in names]
        for tally in tallies:
            tally.add(frames, labels)
        places += numbers
        named += names
        progress.update(len(frames))
    if not places:
        raise InputError(f"{bucket.name}: {found.nothing_fits(bucket)}")
    whole = {name: np.concatenate(parts) for name, parts in originals.items()}
    told = {}
    for tally in tallies:
        quality = tally.quality()
        worst = [
            {"name": named[i], "psnr": float(quality[i])} for i in np.argsort(quality, kind="stable")[:NAMED]
        ]
        told[tally.codec.name] = tally.results(whole, seed) | {"worst": worst}
    return tallies, told, places, named


def _show(
    tallies: Sequence[Tally], bucket: Bucket, found: Samples, places: Sequence[int], named: Sequence[str]
) -> list[page.Shown]:
    """The samples that the page shows: the first codec's worst and typical ones, and the others' worst."""
    quality = [tally.quality() for tally in tallies]
    order = np.argsort(quality[0], kind="stable")
    middle = max(0, (len(order) - TYPICAL) // 2)
    wanted = {int(i): "worst" for i in order[:WORST]}
    for i in order[middle : middle + TYPICAL]:
        wanted.setdefault(int(i), "typical")
    for tally, values in zip(tallies[1:], quality[1:], strict=True):
        wanted.setdefault(int(np.argmin(values)), f"worst of {page.short(tally.codec.name)}")
    shown = []
    for i, why in wanted.items():
        frames = found.read(bucket, places[i])
        decoded = {}
        for tally, values in zip(tallies, quality, strict=True):
            pixels = np.round((tally.reconstruct(frames)[0] + 1) * 127.5).astype(np.uint8)
            decoded[tally.codec.name] = page.Decoded(pixels, float(values[i]))
        shown.append(page.Shown(why, named[i], frames[0], decoded))
    return shown


def _buckets(names: Sequence[str], config: ConfigDict, found: Samples, asked: bool) -> list[Bucket]:
    """The buckets to score; of those that a run has, the ones that the data has samples for."""
    names = names or [name for name, fields in config.data.buckets.items() if fields.get("batch")]
    if not names:
        raise InputError("--buckets is missing and there is no run; accepted: e.g. --buckets image_256x256")
    try:
        parsed = parse_buckets({name: {"batch": 1} for name in names}, 1, 1)
    except InputError as error:
        raise InputError(str(error).replace("data.buckets.", "--buckets ", 1)) from None
    kept = []
    for bucket in parsed:
        if found.count(bucket):
            kept.append(bucket)
        elif asked:
            raise InputError(f"--buckets {found.nothing_fits(bucket)}")
        else:
            print(f"{found.nothing_fits(bucket)}; it is not scored", file=sys.stderr)
    if not kept:
        raise InputError(f"--data: no sample fits {', '.join(names)}; accepted: larger media, or --buckets")
    return kept


def _open(
    names: Sequence[str],
    run_name: str,
    buckets: Sequence[Bucket],
    found: Samples,
    mesh: Mesh,
    seed: int,
) -> list[Codec]:
    """The codecs in the order of their names; those that are fitted learn from the run's training samples."""
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"codec {name!r} is named twice; accepted: every codec once")
    context = {"fps": found.fps, "seed": seed}
    opened = {name: open_codec(name, mesh=mesh, **context) for name in names if name not in FITTED}
    for codec, bucket in itertools.product(opened.values(), buckets):
        check_shape(codec, bucket.frames, bucket.height, bucket.width)
    like = next((c for c in opened.values() if c.latent_shape(1, c.spatial_factor, c.spatial_factor)), None)
    for name in (name for name in names if name in FITTED):
        if run_name:
            frames = normalisation.training_samples(run_name, buckets)
        else:
            frames = itertools.chain.from_iterable(_frames(found, bucket) for bucket in buckets)
        opened[name] = open_codec(name, like=like, samples=frames, **context)
        opened[name].settings["fitted_to"] = f"training samples of {run_name}" if run_name else "the samples"
        opened[name].settings["like"] = like.name if like else None
        for bucket in buckets:
            check_shape(opened[name], bucket.frames, bucket.height, bucket.width)
    return [opened[name] for name in names]


def _frames(found: Samples, bucket: Bucket) -> Iterator[np.ndarray]:
    for frames, _, _ in itertools.islice(found.batches(bucket, 1), normalisation.SAMPLES):
        yield frames


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = cli.parser(
        "vaejax.evaluate",
        "Scores codecs on photos and clips: OUT/results.json and OUT/report.html. Without --data, on what the"
        " run held out.",
        "--checkpoint runs/demo --data ~/Videos --out evaluation --compare linear jpeg:matched h264:23",
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR", default="", help="a run, its checkpoints/STEP, or an export"
    )
    parser.add_argument(
        "--compare", metavar="CODEC", nargs="+", default=[], help=f"more codecs in the same table: {NAMES}"
    )
    parser.add_argument(
        "--data", metavar="FOLDER|tfds:NAME", default="", help="every file once, cut from the middle"
    )
    parser.add_argument("--out", metavar="OUT", required=True, help="the folder of the results")
    parser.add_argument(
        "--buckets", metavar="NAME", nargs="+", default=[], help="such as image_256x256 video_17x256x256"
    )
    parser.add_argument(
        "--samples", metavar="N", type=cli.at_least(1), default=0, help="of a bucket, at most"
    )
    parser.add_argument("--fps", type=cli.at_least(1e-3, float), default=0.0, help="of clips")
    parser.add_argument(
        "--batch", metavar="N", type=cli.at_least(1), default=8, help="samples at once: memory and speed"
    )
    parser.add_argument(
        "--seed", type=cli.at_least(0), default=0, help="of the intervals, and of random weights"
    )
    parser.add_argument(
        "--inception", metavar="FILE", default="", help="FID's Inception weights, for the standard rFID"
    )
    chosen = parser.parse_args(arguments)
    return cli.run(lambda: _command(chosen), "stopped; nothing is written")


def _command(chosen: argparse.Namespace) -> None:
    names = [chosen.checkpoint] * bool(chosen.checkpoint) + chosen.compare
    if not names:
        raise InputError("--checkpoint or --compare is needed: --checkpoint=DIR --data=FOLDER --out=OUT")
    out = cli.made_folder(chosen.out)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of how it was opened
    cache.keep_compiled()
    told, shown = evaluate(
        names,
        chosen.data,
        chosen.buckets,
        chosen.samples,
        chosen.fps,
        chosen.batch,
        chosen.seed,
        chosen.inception,
    )
    with cli.writing(chosen.out):
        files.write_json(out / "results.json", told)
        page.write(out / "report.html", told, shown)
    print(summary(told))
    print(f"{out / 'results.json'}\n{out / 'report.html'}")


def summary(told: dict[str, Any]) -> str:
    """The scores most asked for, a line a bucket and codec."""
    lines = []
    for bucket, name in itertools.product(told["buckets"], told["codecs"]):
        found = told["results"][bucket][name]["scores"]
        shown = [
            f"{label} {found[score]['value']:.{digits}f}"
            for score, label, digits in (
                ("psnr", "psnr", 2),
                ("ssim", "ssim", 4),
                ("lpips_alexnet", "lpips", 4),
                ("kid_efficientnet", "kid", 5),
                ("rfvd_i3d", "rfvd", 2),
                ("bits_per_pixel", "bits", 2),
            )
            if score in found
        ]
        lines.append(f"{bucket:20} {page.short(name):32} {'  '.join(shown)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
