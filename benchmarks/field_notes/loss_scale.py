"""Lesson 1: the scale of a loss decides whether images or clips win."""

from typing import Any

import numpy as np

from benchmarks.field_notes import settings
from benchmarks.field_notes.lab import Lab, Trained
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import paired

SEEDS = (0, 1, 2, 3)
ARMS = {
    "sum": {"loss.normalization": "sum"},
    "mean": {"loss.normalization": "mean"},
    "reference": {"loss.normalization": "reference"},
}
WEIGHTS = (0.25, 4.0)  # of clips, with the normalization 'reference', which draw the trade-off curve


def run(lab: Lab) -> Outcome:
    """Trains with each normalization and with further weights of clips."""
    (image, clip), steps = settings.joint(lab).buckets, lab.pick(120, 5000)

    def trained(arm: str, seed: int, changes: dict[str, Any], weight: float = 1.0) -> Trained:
        both = settings.joint(lab, clip_weight=weight).settings
        return lab.train(arm, seed, steps, both | changes | {"eval.every": steps})

    def psnr(one: Trained) -> tuple[float, float]:
        return one.last(f"eval/{image}/psnr"), one.last(f"eval/{clip}/psnr")

    points = {arm: np.array([psnr(trained(arm, s, more)) for s in SEEDS]) for arm, more in ARMS.items()}
    for weight in WEIGHTS:
        arm = f"reference, clips x{weight:g}"
        runs = [psnr(trained(arm, seed, ARMS["reference"], weight)) for seed in SEEDS[:2]]
        points[arm] = np.array(runs)

    gap = {arm: values[:, 0] - values[:, 1] for arm, values in points.items()}
    differences = [
        paired("images minus clips, sum against mean", "dB", gap["sum"], gap["mean"], -1),
        paired("images minus clips, sum against reference", "dB", gap["sum"], gap["reference"], -1),
    ]
    rows = [
        [
            arm,
            *(f"{m:.2f} ± {s:.2f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)),
            f"{gap[arm].mean():+.2f}",
        ]
        for arm, values in points.items()
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        curve = sorted(arm for arm in points if arm.startswith("reference"))
        order = sorted(curve, key=lambda arm: points[arm][:, 1].mean())
        means = np.array([points[arm].mean(0) for arm in order])
        axes.plot(means[:, 1], means[:, 0], "-", color="0.7", zorder=0, label="reference, by weight of clips")
        for arm, values in points.items():
            axes.errorbar(*values.mean(0)[::-1], *values.std(0, ddof=1)[::-1], fmt="o", capsize=3, label=arm)
        axes.set_xlabel("PSNR of held-out clips, dB")
        axes.set_ylabel("PSNR of held-out images, dB")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)

    return Outcome(differences, ["loss", "images, dB", "clips, dB", "images minus clips"], rows, draw)


LESSON = Lesson(
    name="loss_scale",
    title="The scale of the loss",
    claim=(
        "A loss summed over pixels gives clips the larger gradient, and images get worse. A mean per"
        " sample favors images. A reference shape keeps the scale, and weights of resolutions and"
        " modalities decide."
    ),
    setup=(
        "The demo's networks, trained on equal batches of images and clips for equal numbers of updates."
        " Only the normalization of the loss differs, or the weight of clips."
    ),
    run=run,
)
