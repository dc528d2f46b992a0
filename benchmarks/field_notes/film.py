"""Lesson 4: telling the network whether it sees an image or a clip (FiLM) changes nothing."""

from typing import Any

import numpy as np

from benchmarks.field_notes import settings
from benchmarks.field_notes.lab import Lab
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import paired

SEEDS = (0, 1, 2, 3)
MARGIN = 0.1  # dB


def run(lab: Lab) -> Outcome:
    """Trains with and without FiLM."""
    both, steps = settings.joint(lab), lab.pick(150, 5000)
    psnr = {}
    for arm, film in (("without", False), ("with FiLM", True)):
        changes = both.settings | {"model.film": film, "eval.every": steps}
        trained = [lab.train(arm, seed, steps, changes) for seed in SEEDS]
        psnr[arm] = np.array([[one.last(f"eval/{name}/psnr") for name in both.buckets] for one in trained])
    kinds = ("images", "clips")
    differences = [
        paired(
            f"PSNR of {kind}, with minus without",
            "dB",
            psnr["with FiLM"][:, i],
            psnr["without"][:, i],
            0,
            MARGIN,
        )
        for i, kind in enumerate(kinds)
    ]
    rows = [
        [arm, *(f"{values[:, i].mean():.2f} ± {values[:, i].std(ddof=1):.2f}" for i in range(2))]
        for arm, values in psnr.items()
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, difference in enumerate(differences):
            axes.plot([i] * len(SEEDS), difference.values, "o", color="C0", alpha=0.5)
            axes.errorbar(i + 0.15, difference.mean, difference.half_width, fmt="s", color="C1", capsize=4)
        axes.axhspan(-MARGIN, MARGIN, color="0.92", zorder=0)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(2), kinds)
        axes.set_xlim(-0.5, 1.6)
        axes.set_ylabel("PSNR with FiLM minus without, dB")
        axes.set_title("each seed (dots), mean and 95% interval; grey counts as none", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)

    return Outcome(differences, ["network", "images, dB", "clips, dB"], rows, draw)


LESSON = Lesson(
    name="film",
    title="FiLM",
    claim="Scaling and shifting activations differently for images and clips (FiLM) had no effect.",
    setup="The demo's networks with and without FiLM, trained on the same samples.",
    run=run,
)
