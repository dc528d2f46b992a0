"""Lesson 2: which learning rates survive, by clipping and normalization."""

from typing import Any

import numpy as np

from benchmarks.field_notes import settings
from benchmarks.field_notes.lab import Lab, Trained
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import Difference

SEEDS = (0, 1)
CONVOLUTIONS = {"groupnorm": "group normalization", "smc": "self-modulated"}
CLIPPING = {
    "none": {"optim.agc": 0.0},
    "global norm": {"optim.agc": 0.0, "optim.clip_norm": 1000.0},
    "AGC": {"optim.agc": 0.1},
}
RATES = (3e-3, 1e-2, 3e-2)
FALL = 3.0  # dB below the start, from which a run counts as blown up


def run(lab: Lab) -> Outcome:
    """Trains with every convolution, clipping and learning rate."""
    both, steps = settings.joint(lab, small=True), lab.pick(60, 2000)
    failed: dict[tuple[str, str, float], list[bool]] = {}
    for conv in CONVOLUTIONS:
        for clip, changes in CLIPPING.items():
            for rate in RATES:
                all_of_it = (
                    both.settings
                    | changes
                    | {
                        "model.conv": conv,
                        "optim.learning_rate": rate,
                        "optim.schedule": "constant",
                        "eval.every": steps,
                        "recovery.rollbacks": 0,
                        "log_every": 10,
                    }
                )
                arm = f"{conv}, {clip}, {rate:g}"
                runs = [lab.train(arm, seed, steps, all_of_it, fails=True) for seed in SEEDS]
                failed[conv, clip, rate] = [blew_up(one, both.buckets) for one in runs]

    def against(clip: str) -> Difference:
        pairs = [
            float(a) - float(b)
            for conv in CONVOLUTIONS
            for rate in RATES
            for a, b in zip(failed[conv, "none", rate], failed[conv, clip, rate], strict=True)
        ]
        return Difference(f"share of failed runs, no clipping minus {clip}", "", tuple(pairs), 1)

    rows = [
        [f"{CONVOLUTIONS[conv]}, {clip}", *(f"{np.mean(failed[conv, clip, rate]):.0%}" for rate in RATES)]
        for conv in CONVOLUTIONS
        for clip in CLIPPING
    ]
    norm = against("global norm")

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(CONVOLUTIONS), sharey=True)
        for axes, conv in zip(panels, CONVOLUTIONS, strict=True):
            shares = np.array([[np.mean(failed[conv, clip, rate]) for rate in RATES] for clip in CLIPPING])
            axes.imshow(shares, cmap="RdYlGn_r", vmin=0, vmax=1, aspect="auto")
            for (i, j), share in np.ndenumerate(shares):
                axes.text(j, i, f"{share:.0%}", ha="center", va="center")
            axes.set_xticks(range(len(RATES)), [f"{rate:g}" for rate in RATES])
            axes.set_yticks(range(len(CLIPPING)), list(CLIPPING))
            axes.set_xlabel("learning rate")
            axes.set_title(CONVOLUTIONS[conv], fontsize=10)
        figure.suptitle("share of runs that diverge", fontsize=11)

    return Outcome(
        [against("AGC")],
        ["network, clipping", *(f"failed at {rate:g}" for rate in RATES)],
        rows,
        draw,
        [f"Beside it, {norm.sentence()}."],
    )


def blew_up(one: Trained, buckets: tuple[str, str]) -> bool:
    """Whether a run had updates that were not finite, or ended far below where it began."""
    curves = [one.curve(f"eval/{bucket}/psnr") for bucket in buckets]
    fell = any(len(curve) < 2 or not curve[-1][1] >= curve[0][1] - FALL for curve in curves)
    return fell or one.last("train/all/bad_steps") > 0


LESSON = Lesson(
    name="nan",
    title="NaN",
    claim=(
        "With equal weights for images and clips, training ended in NaN. Adaptive gradient clipping"
        " (AGC) made it stable."
    ),
    setup=(
        "Short runs on images and clips of equal weight, at three constant learning rates, with group"
        " normalization or self-modulated convolutions, without clipping, with clipping by the global"
        " norm, and with AGC. A run fails if an update is not finite, or if PSNR ends more than"
        f" {FALL:g} dB below its start."
    ),
    run=run,
)
