"""The README.md of an export: what the model is, how to read it, and how well it does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

SCORES = {  # of results.json, by what a person calls them: with digits, and which way is better
    "psnr": ("PSNR, dB", 2, "↑"),
    "ssim": ("SSIM", 4, "↑"),
    "lpips_alexnet": ("LPIPS (AlexNet)", 4, "↓"),
    "lpips_vgg16": ("LPIPS (VGG)", 4, "↓"),
    "rfid_inception": ("rFID", 2, "↓"),
    "kid_efficientnet": ("KID (EfficientNet)", 5, "↓"),
    "rfvd_i3d": ("rFVD (I3D)", 2, "↓"),
    "flicker": ("flicker", 3, "↓"),
    "bits_per_pixel": ("bits a pixel", 2, ""),
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

A variational autoencoder of images and videos for latent diffusion, trained with vaejax: {s}x smaller in
height and width, {time}, {c} channels. That is {clip} times fewer numbers for a long clip and {image} times
fewer for an image, which is a clip of one frame.

| | |
|---|---|
| frames | (T, H, W, 3); T = {lengths}, H and W multiples of {s} (vaejax fills up other sizes and undoes it) |
| latents | (t, h, w, {c}); t = {latent_lengths}, h = H/{s}, w = W/{s} |
| parameters | {total}: encoder {encoder}, decoder {decoder} |
| weights | averaged (EMA), {dtype}; computed in {compute} |
| training step | {step} |
| model | `{fingerprint}`: latents of another model are refused |

licence: to be filled in by whoever publishes this

## Use

With vaejax installed:

```python
import vaejax

codec = vaejax.load("{name}")  # this folder
latents = codec.encode(frames{raw})  # uint8 (T, H, W, 3) or an image (H, W, 3); any size from 16x16
frames = codec.decode(latents)
```

{latents_are}

The weights with the safetensors package alone:

```python
{weights_import}from safetensors.numpy import load_file

weights = load_file("{name}/model.safetensors")  # {{"encoder.conv_in.kernel": array, ...}}
```

Kernels are (time, height, width, in, out). The same arrays as a tree, with Orbax alone:

```python
import pathlib

import orbax.checkpoint as ocp

params = ocp.StandardCheckpointer().restore(pathlib.Path("{name}/checkpoint").absolute())
```
"""

_STABLEHLO = """\
## StableHLO

The same model without vaejax: `pip install jax flatbuffers` is all that this needs. The weights are in the
files, which run on CPU, CUDA and TPU with batches of any size b.

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

| file | takes | gives |
|---|---|---|
{rows}

Frames are (b, T, H, W, 3) from 0 to 255; latents are {kind}.
"""


def text(name: str, told: Mapping[str, Any]) -> str:
    """The model card.

    Args:
      name: of the export's folder.
      told: its config.json, and 'rounding', see `compared.check_codec`.
    """
    a, weights = told["architecture"], told["weights"]
    s, t, c = a["spatial_factor"], a["temporal_factor"], a["latent_channels"]
    normalised = told["latents"]["mean"] is not None
    counts = weights["parameters"]
    head = _HEAD.format(
        name=name,
        s=s,
        c=c,
        time=f"{t}x fewer frames" if t > 1 else "as many frames",
        clip=_short(3 * s * s * t / c),
        image=_short(3 * s * s / c),
        lengths=f"1 + a multiple of {t}" if t > 1 else "any number",
        latent_lengths=f"1 + (T - 1)/{t}" if t > 1 else "T",
        total=_count(sum(counts.values())),
        encoder=_count(counts["encoder"]),
        decoder=_count(counts["decoder"]),
        dtype=weights["dtype"],
        compute=a["dtype"],
        step=told["step"],
        fingerprint=told["fingerprint"],
        raw="" if normalised else ", normalize=False",
        latents_are=(
            "Latents come normalised, (z - mean) / std by the statistics below: what a diffusion model"
            " learns."
            if normalised
            else "The statistics of its training latents are not known, so latents come as they are: a"
            " diffusion model should learn (z - mean) / std, of each channel over its own training set."
        ),
        weights_import="import ml_dtypes  # NumPy's bfloat16\n" if weights["dtype"] == "bfloat16" else "",
    )
    parts = [
        head,
        _stablehlo(name, told["stablehlo"], normalised) if told["stablehlo"] else "",
        _rounding(told["rounding"]) if told["rounding"] else "",
        _scores(told["scores"], weights["dtype"]) if told["scores"] else "",
        _latents(told["latents"]) if normalised else "",
        _training(told["training"]) if told["training"] else "",
    ]
    return "\n".join(filter(None, parts))


def _stablehlo(name: str, programs: Sequence[Mapping[str, Any]], normalised: bool) -> str:
    rows = [
        f"| `{one['file']}` | {one['input']} | {one['output']} |"
        for program in programs
        for one in (program["encode"], program["decode"])
    ]
    first = programs[0]
    return _STABLEHLO.format(
        name=name,
        encode=first["encode"]["file"],
        decode=first["decode"]["file"],
        batch=", ".join(map(str, (2, *first["shape"], 3))),
        rows="\n".join(rows),
        kind="normalised, as above" if normalised else "not normalised",
    )


def _rounding(psnr: Mapping[str, float]) -> str:
    return (
        "## Rounding\n\n"
        "The weights were rounded from float32 to bfloat16. A test clip comes back at"
        f" {psnr['exported']:.2f} dB, with the weights before rounding at {psnr['source']:.2f} dB; the two"
        f" reconstructions are {psnr['between']:.1f} dB from each other.\n"
    )


def _scores(scores: Mapping[str, Any], dtype: str) -> str:
    buckets = scores["buckets"]
    shown = [name for name in SCORES if any(name in found for found in buckets.values())]
    lines = [
        "## Scores\n",
        _row("", *(f"{SCORES[name][0]} {SCORES[name][2]}".strip() for name in shown), "samples"),
        "|---" * (len(shown) + 2) + "|",
    ]
    for bucket, found in buckets.items():
        values = (_score(found[name], SCORES[name][1]) if name in found else "" for name in shown)
        samples = next((one["samples"] for one in found.values()), "")
        lines.append(_row(bucket, *values, samples))
    data, cut, versions = scores["data"], scores["cut"], scores["versions"]
    rounded = " They are of the weights before rounding to bfloat16." if dtype == "bfloat16" else ""
    lines.append(
        f"\nOf reconstructions of {data}, clips at {cut['fps']:g} frames a second, by `python -m"
        f" vaejax.evaluate` (vaejax {versions['vaejax']}, jax {versions['jax']}). In brackets the interval of"
        f" 95% by bootstrap. Distances are of the network in brackets and compare only with such.{rounded}\n"
    )
    return "\n".join(lines)


def _score(score: Mapping[str, Any], digits: int) -> str:
    value, low, high = (float(score[key]) for key in ("value", "low", "high"))
    if not math.isfinite(value) or low == high:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _latents(statistics: Mapping[str, Sequence[float]]) -> str:
    pairs = zip(statistics["mean"], statistics["std"], strict=True)
    rows = [_row(i, f"{float(mean):.5g}", f"{float(std):.5g}") for i, (mean, std) in enumerate(pairs)]
    return (
        "## Latents\n\nOf the training set, before normalising; `config.json` has all digits.\n\n"
        "| channel | mean | std |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def _training(training: Mapping[str, Any]) -> str:
    rows = []
    for name, value in training.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {number:g}" for key, number in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        rows.append(_row(TRAINING.get(name, name), value))
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n"


TRAINING = {  # what config.json calls shortly
    "buckets": "samples of each bucket in a step",
    "fps": "frames a second of clips",
    "size": "model size",
    "normalization": "normalisation of the loss",
    "weights": "weights of the loss",
    "learning_rate": "learning rate",
    "agc": "adaptive gradient clipping",
    "ema_decay": "decay of the averaged parameters",
    "perceptual": "network of the perceptual loss",
}


def _row(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _count(n: int) -> str:
    return f"{n / 1e6:.1f}M" if n >= 1e6 else f"{n:,}"


def _short(n: float) -> str:
    return f"{n:.3g}" if n < 100 else f"{n:.0f}"
