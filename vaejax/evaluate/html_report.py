"""report.html, a self-contained page with the tables, charts, pictures and clips of an evaluation."""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vaejax import files
from vaejax.data.table import count_of
from vaejax.evaluate import page
from vaejax.evaluate.page import NONE, Series
from vaejax.rundir.panels import ERROR_GAIN, error_map
from vaejax.rundir.picture import visible

CELL = 192  # least width of a picture on the page, in pixels; smaller ones are enlarged
WINDOW = 512  # largest height and width of a frame on the page, in pixels; larger frames are cropped
LOSSLESS = 2**18  # clips of at most this many pixels, T·H·W, are stored losslessly


class Decoded(NamedTuple):
    """A sample after encoding and decoding: frames (T, H, W, C) uint8, and their PSNR in dB."""

    frames: np.ndarray
    psnr: float


class Shown(NamedTuple):
    """A sample that the page shows.

    Attributes:
      reason: why it is shown: 'worst', 'typical' or 'worst of CODEC'.
      name: file and start of the sample, 'path@start'.
      original: (T, H, W, C) uint8.
      decoded: reconstructions by codec name.
    """

    reason: str
    name: str
    original: np.ndarray
    decoded: Mapping[str, Decoded]


class _Metric(NamedTuple):
    label: str
    better: int  # 1: higher, -1: lower, 0: neither
    digits: int  # decimal places
    note: str  # small print below the label
    scale: float = 1.0  # factor from the stored to the shown value


_METRICS = {
    "psnr": _Metric("PSNR, dB", 1, 2, "mean over frames"),
    "psnr_rgb": _Metric("PSNR of RGB, dB", 1, 2, "red, green and blue alone"),
    "psnr_alpha": _Metric("PSNR of alpha, dB", 1, 2, "alpha alone"),
    "psnr_pooled": _Metric("PSNR pooled, dB", 1, 2, "from the mean squared error of the whole set"),
    "ssim": _Metric("SSIM", 1, 4, "Gaussian window, as in scikit-image"),
    "lpips_alexnet": _Metric("LPIPS AlexNet", -1, 4, "version 0.1"),
    "lpips_vgg16": _Metric("LPIPS VGG16", -1, 4, "version 0.1"),
    "frechet_efficientnet": _Metric("Fréchet EfficientNet", -1, 3, "EfficientNet-Lite0, 1280 features"),
    "kid_efficientnet": _Metric("KID EfficientNet", -1, 5, "unbiased, cubic kernel, features as above"),
    "rfid_inception": _Metric("rFID", -1, 3, "Inception-v3, 2048 features"),
    "kid_inception": _Metric("KID Inception", -1, 5, "unbiased, cubic kernel, features as above"),
    "rfvd_i3d": _Metric("rFVD", -1, 3, "I3D trained on Kinetics-400, 400 logits"),
    "kvd_i3d": _Metric("KVD", -1, 5, "unbiased, cubic kernel, features as above"),
    "flicker": _Metric("flicker, levels", -1, 3, "mean error of frame differences, 8-bit levels"),
    "spots": _Metric("spots, ppm", -1, 1, "pixels with an isolated error, per million", 1e6),
    "seam_chunked": _Metric("seams of chunks, levels", -1, 4, "change at chunk boundaries, 8-bit levels"),
    "psnr_chunked": _Metric("PSNR in chunks, dB", 1, 2, "decoded a few latent frames at a time"),
    "seam_tiled": _Metric("seams of tiles, levels", -1, 4, "change at overlaps of tiles, 8-bit levels"),
    "psnr_tiled": _Metric("PSNR in tiles, dB", 1, 2, "decoded tile by tile"),
    "equivariance_scale": _Metric("half-size latent, levels", -1, 3, "error after decoding, 8-bit levels"),
    "equivariance_rotation": _Metric("rotated latent, levels", -1, 3, "error after decoding, 8-bit levels"),
    "bits_per_pixel": _Metric("bits per pixel", 0, 3, "file size, or 16 bits per latent value"),
}


def write(path: str | os.PathLike, results: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> None:
    """Writes the page atomically.

    Args:
      path: the file.
      results: the content of results.json, from `evaluation.evaluate`.
      shown: samples to show, keyed by bucket name.

    Raises:
      OSError: if the file cannot be written.
    """
    files.write_bytes(path, render(results, shown).encode("utf-8", "replace"))


def render(results: Mapping[str, Any], shown: Mapping[str, Sequence[Shown]]) -> str:
    """The HTML text of the page; arguments as for `write`."""
    settings, codecs = results["settings"], results["codecs"]
    fps = settings["cut"]["fps"]
    parts = [
        f"{page.head('vaejax evaluation')}<h1>vaejax evaluation</h1>",
        f"<p>{page.text(', '.join(map(short, codecs)))}<br><span class=soft>",
        f"Samples: {page.text(settings['data'])}; {page.number(fps, 3)} fps; seed {settings['seed']};",
        f"{page.text(settings['devices'])}</span>",
    ]
    for bucket in results["buckets"]:
        scored = results["results"][bucket]
        parts.append(f"<h2>{page.text(bucket)}</h2>{_table(codecs, scored)}<div class=charts>")
        parts.append(_charts(codecs, scored))
        parts.append("</div>" + _latents(codecs, scored))
        for sample in shown.get(bucket, ()):
            parts.append(_sample(codecs, sample, fps))
    parts.append("<h2>Statistics of training latents</h2>" if results.get("training_latents") else "")
    for codec, statistics in results.get("training_latents", {}).items():
        heading = f"{short(codec)}, step {statistics.get('step', '?')}: normalize with (z - mean) / std"
        lists = {name: [round(float(value), 6) for value in statistics[name]] for name in ("mean", "std")}
        parts.append(f"<p>{page.text(heading)}<pre>{page.text(json.dumps(lists))}</pre>")
    parts.append("<h2>Settings</h2><p class=soft>All settings that affect the scores, as in results.json.")
    listed = json.dumps(settings, indent=1, sort_keys=True, default=str)
    parts.append(f"<pre>{page.text(listed)}</pre></html>\n")
    return "\n".join(parts)


def short(codec: str) -> str:
    """The name of a codec, shortened for a heading."""
    kind, _, rest = codec.partition(":")
    if kind == "diffusers":
        kind, _, rest = rest.partition(":")
        if rest.lstrip().startswith("{"):
            return f"{kind} (random)"
        return f"{kind} {rest[-24:]}"
    return codec if len(codec) <= 32 else "…" + codec[-31:]


def _table(codecs: Sequence[str], scored: Mapping[str, Any]) -> str:
    """The scores: one row per metric with the best value marked, one column per codec."""
    present = {name for codec in codecs for name in scored[codec]["scores"]}
    names = [name for name in _METRICS if name in present]
    names += sorted(name for name in present - set(_METRICS) if not name.endswith("_elsewhere"))
    head = "".join(
        f"<th>{page.text(short(codec))}<br><small>{scored[codec]['samples']} samples of"
        f" {count_of(scored[codec]['files'], 'file')}</small></th>"
        for codec in codecs
    )
    rows = []
    for name in names:
        metric = _METRICS.get(name, _Metric(name, 0, 4, ""))
        scores = [scored[codec]["scores"].get(name) for codec in codecs]
        values = [float(score["value"]) for score in scores if score]
        best = max(values, key=lambda value: metric.better * value) if metric.better else None
        arrow = {1: " ↑", -1: " ↓", 0: ""}[metric.better]
        cells = []
        for codec, score in zip(codecs, scores, strict=True):
            if not score:
                cells.append(f"<td class=soft>{NONE}</td>")
                continue
            marked = " class=best" if len(values) > 1 and float(score["value"]) == best else ""
            below = [
                f"{page.number(float(score['low']) * metric.scale, metric.digits)} to"
                f" {page.number(float(score['high']) * metric.scale, metric.digits)}"
            ]
            if score["samples"] != scored[codec]["samples"]:
                below.append(f"{score['samples']} samples")
            elsewhere = scored[codec]["scores"].get(f"{name}_elsewhere")
            if elsewhere:
                below.append(f"elsewhere {page.number(float(elsewhere['value']), metric.digits)}")
            value = page.number(float(score["value"]) * metric.scale, metric.digits)
            cells.append(f"<td{marked}>{value}<small>{'<br>'.join(below)}</small></td>")
        note = f"<small>{page.text(metric.note)}</small>" if metric.note else ""
        rows.append(f"<tr><td>{page.text(metric.label)}{arrow}{note}</td>{''.join(cells)}</tr>")
    return (
        f"<div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
        "<p class=soft>In small print: 95% bootstrap intervals over samples. With few samples, Fréchet"
        " distances are biased upward; kernel distances (KID, KVD) are not."
    )


def _charts(codecs: Sequence[str], scored: Mapping[str, Any]) -> str:
    def curves(points: Mapping[str, Sequence[tuple[float, float]]]) -> list[Series]:
        """Curves by codec; a codec has the same color in every chart."""
        colors = {codec: page.color(i) for i, codec in enumerate(codecs)}
        return [Series(short(codec), points[codec], colors[codec]) for codec in codecs if codec in points]

    by_frame = {
        codec: [(i, float(y)) for i, y in enumerate(scored[codec]["psnr_by_frame"])] for codec in codecs
    }
    charts = []
    if any(len(points) > 1 for points in by_frame.values()):
        charts.append(page.chart(curves(by_frame), "frame", "PSNR by frame, dB"))
    if len(codecs) > 1:
        value = {
            codec: {k: float(v["value"]) for k, v in scored[codec]["scores"].items()} for codec in codecs
        }
        by_size = {codec: [(value[codec]["bits_per_pixel"], value[codec]["psnr"])] for codec in codecs}
        charts.append(page.chart(curves(by_size), "bits per pixel", "PSNR by size, dB", lines=False))
    spectra = {}
    for codec in codecs:
        spectrum = [float(value) for value in scored[codec].get("latents", {}).get("spectrum", ())]
        total = sum(spectrum)
        if total > 0 and math.isfinite(total):
            # The floor is a millionth of the variance; smaller shares are rounding errors.
            spectra[codec] = [(i + 1, math.log10(max(v / total, 1e-6))) for i, v in enumerate(spectrum)]
    charts.append(page.chart(curves(spectra), "principal channel", "share of the latent variance, log10"))
    return "".join(charts)


def _latents(codecs: Sequence[str], scored: Mapping[str, Any]) -> str:
    rows = []
    for codec in codecs:
        statistics = scored[codec].get("latents")
        if not statistics:
            continue
        kl = [float(value) for value in statistics.get("kl", ())]
        cells = [
            "x".join(map(str, scored[codec]["latent_shape"])),
            page.number(statistics["effective_rank"], 2),
            _listed(statistics["dead"]),
            _listed(statistics["exploding"]),
            page.number(max(float(value) for value in statistics["peak"]), 1),
            *(page.number(float(statistics["sec"][rho]), 4) for rho in sorted(statistics["sec"])),
            page.number(sum(kl) / len(kl), 3) if kl else NONE,
            page.number(float(statistics["viv"]), 2) if "viv" in statistics else NONE,
        ]
        rows.append(
            f"<tr><td>{page.text(short(codec))}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    if not rows:
        return ""
    first = next(scored[codec]["latents"] for codec in codecs if "latents" in scored[codec])
    heads = ["t x h x w x c", "effective rank", "dead", "exploding", "peak, std"]
    heads += [f"SEC {rho}" for rho in sorted(first["sec"])] + ["KL, nats per value", "VIV"]
    head = "".join(f"<th>{name}</th>" for name in heads)
    return f"<h3>Latents</h3><div class=wide><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"


def _sample(codecs: Sequence[str], sample: Shown, fps: float) -> str:
    """A sample, with one column per codec and rows for the clip, one frame and the errors in that frame.

    The frame is the one in which the first codec has its largest mean error.
    """
    original, first = sample.original, sample.decoded[codecs[0]].frames
    errors = np.abs(original.astype(np.int16) - first).max(-1)
    worst = int(errors.mean((1, 2)).argmax())
    seen = _window(errors[worst])
    columns = {"original": original} | {codec: sample.decoded[codec].frames for codec in codecs}
    head = "".join(
        f"<th>{page.text(name if name == 'original' else short(name))}"
        + ("" if name == "original" else f"<br><small>{page.number(sample.decoded[name].psnr, 2)} dB</small>")
        + "</th>"
        for name in columns
    )
    rows = []
    if len(original) > 1:
        clips = "".join(f"<td>{_moving(visible(frames)[:, *seen], fps)}</td>" for frames in columns.values())
        rows.append(f"<tr><td class=soft>clip</td>{clips}</tr>")
    stills = "".join(f"<td>{_still(visible(frames[worst])[seen])}</td>" for frames in columns.values())
    rows.append(f"<tr><td class=soft>{f'frame {worst}' if len(original) > 1 else ''}</td>{stills}</tr>")
    maps = "".join(
        "<td></td>"
        if name == "original"
        else f"<td>{_still(error_map(original[worst], frames[worst])[seen])}</td>"
        for name, frames in columns.items()
    )
    rows.append(f"<tr><td class=soft>error x{ERROR_GAIN}</td>{maps}</tr>")
    name = os.path.basename(sample.name)
    return (
        f"<h3>{page.text(sample.reason)}: <span class=soft>{page.text(name)}</span></h3><div class=wide>"
        f"<table class=samples><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"
    )


def _window(error: np.ndarray) -> tuple[slice, slice]:
    """The part of a frame to show, given its error (H, W): all of it, or the crop with the largest error."""
    height, width = (min(size, WINDOW) for size in error.shape)
    sums = np.pad(error.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    totals = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    y, x = np.unravel_index(totals.argmax(), totals.shape)
    return slice(int(y), int(y) + height), slice(int(x), int(x) + width)


def _still(frame: np.ndarray) -> str:
    """An <img> of (H, W, 3) uint8 as PNG."""
    return page.picture(frame, _shown_width(frame))


def _moving(frames: np.ndarray, fps: float) -> str:
    """An <img> of (T, H, W, 3) uint8 as animated WebP, lossless up to LOSSLESS pixels."""
    pictures = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    lossless = frames[..., 0].size <= LOSSLESS
    file = io.BytesIO()
    pictures[0].save(
        file,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        duration=round(1000 / fps),
        loop=0,
        lossless=lossless,
        quality=60 if lossless else 92,  # in lossless WebP, the compression effort
    )
    return page.embedded("webp", file.getvalue(), _shown_width(frames[0]))


def _shown_width(frame: np.ndarray) -> int:
    """The page width of a frame (H, W, 3), enlarged by a whole factor to at least CELL."""
    return frame.shape[1] * max(1, -(-CELL // frame.shape[1]))


def _listed(channels: Sequence[int]) -> str:
    return f"{len(channels)}: {', '.join(map(str, channels[:8]))}" if channels else "none"
