"""The model card of an export, README.md: the model, its use and its scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vaejax.config.schema import ModelConfig
from vaejax.models.families import from_json


class Score(NamedTuple):
    """How the card shows a score: label, unit, number of decimals, and an arrow towards better values."""

    label: str
    unit: str
    digits: int
    better: str


SCORES = {  # name of a score in results.json -> how the card shows it
    "psnr": Score("PSNR", "dB", 2, "↑"),
    "psnr_rgb": Score("PSNR of RGB", "dB", 2, "↑"),
    "psnr_alpha": Score("PSNR of alpha", "dB", 2, "↑"),
    "ssim": Score("SSIM", "", 4, "↑"),
    "lpips_alexnet": Score("LPIPS (AlexNet)", "", 4, "↓"),
    "lpips_vgg16": Score("LPIPS (VGG)", "", 4, "↓"),
    "rfid_inception": Score("rFID", "", 2, "↓"),
    "kid_efficientnet": Score("KID (EfficientNet)", "", 5, "↓"),
    "rfvd_i3d": Score("rFVD (I3D)", "", 2, "↓"),
    "flicker": Score("flicker", "", 3, "↓"),
    "bits_per_pixel": Score("bits per pixel", "", 2, ""),
}

_HEAD = """\
---
library_name: vaejax
tags:
- vae
- autoencoder
- image
- video
- latent-diffusion
- jax
- flax
---

# {name}

{description}

| | |
|---|---|
| frames | (T, H, W, {p}); T = {lengths}, H and W multiples of {s} (vaejax pads other sizes) |
| latents | (t, h, w, {c}); t = {latent_lengths}, h = H/{s}, w = W/{s} |
| parameters | {total}: encoder {encoder}, decoder {decoder} |
| weights | averaged (EMA), stored in {dtype}; the model computes in {compute} |
| training step | {step} |
| fingerprint | `{fingerprint}`; the decoder refuses latents from a different model |

License: to be filled in by the publisher

## Use

With vaejax installed:

```python
import vaejax

codec = vaejax.load("{name}")  # this folder
latents = codec.encode(frames{raw})  # uint8 (T, H, W, {p}) or an image (H, W, {p}); any size from 16x16
frames = codec.decode(latents)
```

{latents_are}

To read the weights with only the safetensors package:

```python
{weights_import}from safetensors.numpy import load_file

weights = load_file("{name}/model.safetensors")  # {{"encoder.conv_in.kernel": array, ...}}
```

Kernels are (time, height, width, in, out). To read the same arrays as a tree, with only Orbax:

```python
import pathlib

import orbax.checkpoint as ocp

params = ocp.StandardCheckpointer().restore(pathlib.Path("{name}/checkpoint").absolute())
```
"""

_DESCRIPTION = """\
A variational autoencoder of images and videos for latent diffusion, trained with vaejax. Its latents have {c}
channels and {time}, and are {s}x smaller in height and width. They have {clip} times fewer numbers than a
long clip, and {image} times fewer than an image, which is a clip of one frame."""

_STABLEHLO = """\
## StableHLO

These programs run the model without vaejax; they need only `pip install jax flatbuffers`. The files include
the weights and run on CPU, CUDA and TPU with batches of any size b.

```python
import pathlib

import numpy as np
from jax import export

encode, decode = (
    export.deserialize(bytearray(pathlib.Path("{name}", file).read_bytes())).call
    for file in ("{encode}", "{decode}")
)
latents = encode(np.zeros(({batch}), np.uint8))
frames = decode(latents)
```

| file | input | output |
|---|---|---|
{rows}

Frames are (b, T, H, W, {p}) from 0 to 255; latents are {kind}.
"""

_SETTINGS = {  # name of a training setting in config.json -> label; other settings are labeled by their names
    "buckets": "samples of each bucket per step",
    "fps": "frame rate of clips",
    "size": "model size",
    "normalization": "normalization of the loss",
    "weights": "weights of the loss",
    "learning_rate": "learning rate",
    "agc": "adaptive gradient clipping",
    "ema_decay": "decay of the averaged parameters",
    "perceptual": "network of the perceptual loss",
}


def text(name: str, config: Mapping[str, Any]) -> str:
    """Returns the text of the model card, as Markdown.

    Args:
      name: name of the export's folder.
      config: contents of the export's config.json, and 'rounding', the result of `verify.check_codec`.
    """
    weights, normalized = config["weights"], config["latents"]["mean"] is not None
    head = _HEAD.format(
        **facts(config),
        name=name,
        raw="" if normalized else ", normalize=False",
        latents_are=(
            "Latents are normalized, (z - mean) / std with the statistics below. Train a diffusion model on"
            " these values."
            if normalized
            else "Latents are not normalized, because the statistics of the training latents are unknown."
            " Train a diffusion model on (z - mean) / std, with the statistics of each channel over the"
            " diffusion model's training set."
        ),
        weights_import="import ml_dtypes  # NumPy's bfloat16\n" if weights["dtype"] == "bfloat16" else "",
    )
    programs = []
    if config["stablehlo"]:
        pixels = from_json(config["architecture"], ModelConfig()).pixel_channels
        programs = [_stablehlo(name, config["stablehlo"], pixels, normalized)]
    return "\n".join([head, *programs, *details(config)])


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that the head of every card states, by their names in its template."""
    a, weights = from_json(config["architecture"], ModelConfig()), config["weights"]
    s, t, c = a.spatial_factor, a.temporal_factor, a.latent_channels
    counts = weights["parameters"]
    description = _DESCRIPTION.format(
        s=s,
        c=c,
        time=f"{t}x fewer frames" if t > 1 else "as many frames",
        clip=_short(a.pixel_channels * s * s * t / c),
        image=_short(a.pixel_channels * s * s / c),
    )
    return {
        "description": description,
        "s": s,
        "t": t,
        "c": c,
        "p": a.pixel_channels,
        "lengths": f"1 + a multiple of {t}" if t > 1 else "any number",
        "latent_lengths": f"1 + (T - 1)/{t}" if t > 1 else "T",
        "total": _count(sum(counts.values())),
        "encoder": _count(counts["encoder"]),
        "decoder": _count(counts["decoder"]),
        "dtype": weights["dtype"],
        "compute": a.dtype,
        "step": config["step"],
        "fingerprint": config["fingerprint"],
    }


def details(config: Mapping[str, Any]) -> list[str]:
    """The sections of every card about rounding, scores, latents and training, as far as they are known."""
    parts = [
        _rounding(config["rounding"]) if config["rounding"] else "",
        _scores(config["scores"], config["weights"]["dtype"]) if config["scores"] else "",
        _latents(config["latents"]) if config["latents"]["mean"] is not None else "",
        _training(config["training"]) if config["training"] else "",
    ]
    return list(filter(None, parts))


def _stablehlo(name: str, programs: Sequence[Mapping[str, Any]], pixels: int, normalized: bool) -> str:
    rows = [
        f"| `{program['file']}` | {program['input']} | {program['output']} |"
        for pair in programs
        for program in (pair["encode"], pair["decode"])
    ]
    first = programs[0]
    return _STABLEHLO.format(
        name=name,
        encode=first["encode"]["file"],
        decode=first["decode"]["file"],
        batch=", ".join(map(str, (2, *first["shape"], pixels))),
        p=pixels,
        rows="\n".join(rows),
        kind="normalized, as above" if normalized else "not normalized",
    )


def _rounding(psnr: Mapping[str, float]) -> str:
    return (
        "## Rounding\n\n"
        "The weights are rounded from float32 to bfloat16. The PSNR of a reconstructed test clip is"
        f" {psnr['exported']:.2f} dB, and {psnr['source']:.2f} dB with the float32 weights. The PSNR between"
        f" the two reconstructions is {psnr['between']:.1f} dB.\n"
    )


def _scores(scores: Mapping[str, Any], dtype: str) -> str:
    buckets = scores["buckets"]
    shown = [name for name in SCORES if any(name in values for values in buckets.values())]
    lines = [
        "## Scores\n",
        _row("", *(_heading(SCORES[name]) for name in shown), "samples"),
        "|---" * (len(shown) + 2) + "|",
    ]
    for bucket, values in buckets.items():
        cells = (_score(values[name], SCORES[name].digits) if name in values else "" for name in shown)
        samples = next((value["samples"] for value in values.values()), "")
        lines.append(_row(bucket, *cells, samples))
    data, cut, versions = scores["data"], scores["cut"], scores["versions"]
    rounded = " They were measured before rounding to bfloat16." if dtype == "bfloat16" else ""
    lines.append(
        f"\nReconstructions of {data}, clips at {cut['fps']:g} frames per second, scored by `python -m"
        f" vaejax.evaluate` (vaejax {versions['vaejax']}, jax {versions['jax']}). In parentheses: 95%"
        " bootstrap intervals. KID and rFVD use features of the network in their heading and are comparable"
        f" only with the same network.{rounded}\n"
    )
    return "\n".join(lines)


def _heading(score: Score) -> str:
    label = f"{score.label}, {score.unit}" if score.unit else score.label
    return f"{label} {score.better}".strip()


def _score(score: Mapping[str, Any], digits: int) -> str:
    value, low, high = (float(score[key]) for key in ("value", "low", "high"))
    if not math.isfinite(value) or low == high:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _latents(statistics: Mapping[str, Any]) -> str:
    pairs = zip(statistics["mean"], statistics["std"], strict=True)
    rows = [_row(i, f"{float(mean):.7g}", f"{float(std):.7g}") for i, (mean, std) in enumerate(pairs)]
    inherited = "Statistics of the model that it was trained from"
    origin = inherited if statistics.get("inherited") else "Statistics over the training set"
    head = f"## Latents\n\n{origin}, before normalization.\n\n| channel | mean | std |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _training(training: Mapping[str, Any]) -> str:
    rows = []
    for name, value in training.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {number:g}" for key, number in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        rows.append(_row(_SETTINGS.get(name, name), value))
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _count(n: int) -> str:
    return f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n:,}"


def _short(n: float) -> str:
    return f"{n:.3g}" if n < 100 else f"{n:.0f}"
