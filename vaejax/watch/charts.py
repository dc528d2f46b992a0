"""The charts of the page: one for each logged number that a person reads, with one curve per run."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from vaejax.evaluate import page
from vaejax.evaluate.page import Series
from vaejax.watch.reader import Curve, Run

POINTS = 300  # most points of a curve; longer curves are averaged


class Number(NamedTuple):
    """A logged number that has a chart.

    Attributes:
      title: title of the chart, with the unit.
      split: 'train' or 'eval'.
      name: its name in metrics.jsonl.
      digits: significant digits of the latest value in the legend.
      scale: factor from the logged to the shown value.
      log: whether the y axis is logarithmic if the values span orders of magnitude.
    """

    title: str
    split: str
    name: str
    digits: int = 3
    scale: float = 1.0
    log: bool = False


OF_BUCKET = (
    Number("LPIPS by AlexNet, held out, lower is better", "eval", "lpips_alexnet"),
    Number("LPIPS by VGG16, held out, lower is better", "eval", "lpips_vgg16"),
    Number("SSIM, held out, higher is better", "eval", "ssim", 4),
    Number("flicker, held out, 8-bit levels", "eval", "flicker"),
    Number("kernel distance of the probe, lower is better", "eval", "probe_kernel", 4),
    Number("reconstruction loss (NLL), nats per pixel value", "train", "nll"),
    Number("KL, nats per pixel value", "train", "kl", log=True),
    Number("perceptual loss (LPIPS)", "train", "perceptual"),
    Number("adversarial loss, frames", "train", "adversarial_image"),
    Number("adversarial loss, clips", "train", "adversarial_video"),
    *(
        Number(f"{name.replace('_', ' ')} loss", "train", name)
        for name in ("high_pass", "wavelet", "temporal", "outliers", "roughness", "equivariance")
    ),
)
OF_UPDATE = (
    Number("learning rate", "train", "learning_rate"),
    Number("gradient norm before clipping", "train", "grad_norm", log=True),
    Number("accuracy of the frame discriminator, %", "train", "accuracy_image", scale=100),
    Number("accuracy of the clip discriminator, %", "train", "accuracy_video", scale=100),
    Number("images and clips per second", "train", "samples_per_second"),
    Number("time spent waiting for data, %", "train", "data_wait", scale=100),
    Number("FLOP utilization (MFU), %", "train", "flop_utilisation", scale=100),
)


def of_bucket(runs: Mapping[str, Run], bucket: str) -> str:
    """The charts of a bucket, as HTML; '' if nothing was logged."""
    return _row(_psnr(runs, bucket), *(_chart(runs, bucket, one) for one in OF_BUCKET))


def of_updates(runs: Mapping[str, Run]) -> str:
    """The charts of whole updates, as HTML; '' if nothing was logged."""
    return _row(*(_chart(runs, "all", one) for one in OF_UPDATE))


def _psnr(runs: Mapping[str, Run], bucket: str) -> str:
    """PSNR of held-out samples and of the linear codec; for one run also of training samples, if logged."""
    series = []
    for i, (name, run) in enumerate(runs.items()):
        prefix = f"{name} " if len(runs) > 1 else ""
        ours, linear = (run.curve("eval", bucket, key) for key in ("psnr", "psnr_linear"))
        train = run.curve("eval", bucket, "psnr_train") or run.curve("train", bucket, "psnr")
        if ours:
            series.append(Series(f"{prefix or 'held out '}{ours[-1][1]:.2f}", ours, page.color(i)))
        if linear:
            # The line extends to before the first and after the latest evaluation.
            ends = (0.0, linear[0][1]), (max(linear[-1][0], run.step), linear[-1][1])
            level = f"{prefix}linear codec {linear[-1][1]:.2f}"
            series.append(Series(level, [ends[0], *linear, ends[1]], page.color(i), dashed=True))
        if train and len(runs) == 1:
            series.append(Series(f"training samples {train[-1][1]:.2f}", _thinned(train), page.color(1)))
    return page.chart(series, "step", "PSNR, held out, dB, higher is better", along=_steps(runs))


def _chart(runs: Mapping[str, Run], bucket: str, of: Number) -> str:
    series = []
    for i, (name, run) in enumerate(runs.items()):
        curve = [(step, of.scale * value) for step, value in run.curve(of.split, bucket, of.name)]
        if curve:
            label = name if len(runs) > 1 else "latest"
            series.append(
                Series(f"{label} {_rounded(curve[-1][1], of.digits)}", _thinned(curve), page.color(i))
            )
    return page.chart(series, "step", of.title, log=of.log, along=_steps(runs))


def _steps(runs: Mapping[str, Run]) -> tuple[int, int]:
    """The first and the latest step, which all charts cover."""
    return 0, max(run.step for run in runs.values())


def _rounded(value: float, digits: int) -> str:
    """A number with `digits` significant digits; a large number keeps all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def _row(*charts: str) -> str:
    drawn = "".join(charts)
    return f"<div class=charts>{drawn}</div>" if drawn else ""


def _thinned(curve: Curve) -> Curve:
    """The curve with at most POINTS points, each the mean of neighbors that are finite."""
    size = -(-len(curve) // POINTS)
    if size < 2:
        return curve
    thin = []
    for start in range(0, len(curve), size):
        group = curve[start : start + size]
        values = [value for _, value in group if math.isfinite(value)]
        thin.append((group[-1][0], sum(values) / len(values) if values else math.nan))
    return thin
