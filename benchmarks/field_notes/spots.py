"""Lesson 3: with clipping, training is stable but leaves spots; self-modulated convolutions remove them."""

from typing import Any

import numpy as np

from benchmarks.field_notes import pictures, settings
from benchmarks.field_notes.lab import Lab, Trained
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import paired

SEEDS = (0, 1, 2)
ARMS = {"group normalization": "groupnorm", "self-modulated": "smc"}
SHOWN = 6  # photos of the figure, those with the most spots


def run(lab: Lab) -> Outcome:
    """Trains with AGC and each kind of convolution, at a high learning rate."""
    both, steps = settings.joint(lab), lab.pick(200, 10_000)
    trained: dict[str, list[Trained]] = {}
    for arm, conv in ARMS.items():
        changes = both.settings | {"model.conv": conv, "optim.learning_rate": 3e-3, "eval.every": steps // 5}
        trained[arm] = [lab.train(arm, seed, steps, changes) for seed in SEEDS]

    def spread(one: Trained) -> list[tuple[int, float]]:
        """The largest activation spread of any level, by update."""
        levels = {name for row in one.rows.values() for name in row if "/spread_" in name}
        return [
            (step, max(row[name] for name in levels if name in row))
            for step, row in one.rows.items()
            if levels & row.keys()
        ]

    spreads = {arm: [spread(one) for one in runs] for arm, runs in trained.items()}
    spots = {
        arm: [100 * np.mean([one.last(f"eval/{name}/spots") for name in both.buckets]) for one in runs]
        for arm, runs in trained.items()
    }
    last = {arm: [curve[-1][1] for curve in curves] for arm, curves in spreads.items()}
    norm, smc = ARMS
    differences = [
        paired("activation spread, group normalization minus self-modulated", "", last[norm], last[smc], 1),
        paired("pixels in spots, the same", "%", spots[norm], spots[smc], 1),
    ]
    rows = [
        [arm, f"{np.mean(last[arm]):.1f}", f"{np.mean(spots[arm]):.3f}%", psnr_of(trained[arm], both.buckets)]
        for arm in ARMS
    ]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        for color, (arm, curves) in zip(("C3", "C0"), spreads.items(), strict=True):
            for i, curve in enumerate(curves):
                left.plot(*zip(*curve, strict=True), color=color, label=None if i else arm)
        left.set_yscale("log")
        left.set_xlabel("update")
        left.set_title("largest activation of a pixel over the median", fontsize=9)
        left.legend(frameon=False)
        left.spines[["top", "right"]].set_visible(False)
        photos = pictures.held_out(96, 24)
        decoded = {arm: pictures.reconstructed(runs[0], photos) for arm, runs in trained.items()}
        error = np.abs(decoded[norm].astype(int) - photos).max((1, 2, 3))
        worst = np.argsort(error)[::-1][:SHOWN]
        pictures.show(
            right, {"original": photos[worst]} | {arm: each[worst] for arm, each in decoded.items()}
        )
        right.set_title("the photos with the largest errors", fontsize=9)

    return Outcome(differences, ["convolutions", "activation spread", "spots", "PSNR, dB"], rows, draw)


def psnr_of(runs: list[Trained], buckets: tuple[str, str]) -> str:
    """The PSNR of images and clips, means over seeds."""
    means = [np.mean([one.last(f"eval/{name}/psnr") for one in runs]) for name in buckets]
    return " and ".join(f"{mean:.2f}" for mean in means)


LESSON = Lesson(
    name="spots",
    title="Spots",
    claim=(
        "With AGC training was stable, but discolored spots appeared, as others had seen with normalized"
        " activations. Self-modulated convolutions, which normalize kernels instead, removed them."
    ),
    setup=(
        "Networks with group normalization or self-modulated convolutions, both with AGC, at three times"
        " the demo's learning rate. The activation spread is the largest norm of a pixel's channels over"
        " the median one."
    ),
    run=run,
)
