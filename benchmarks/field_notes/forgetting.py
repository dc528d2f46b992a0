"""Lesson 6: a network that ends on the highest resolution forgets the others."""

import json
from typing import Any

import numpy as np

from benchmarks.field_notes.lab import Lab, Trained
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import paired

SEEDS = (0, 1, 2)
WEIGHTS = (1.1, 0.1, 0.01)  # of the notes, lowest resolution first
NEVER = 1_000_000  # a bucket drawn so seldom is only scored


def run(lab: Lab) -> Outcome:
    """Trains one resolution after the other, and all at once with equal and with the notes' weights."""
    sides, batches = lab.pick(((32, 64, 128), (32, 8, 2)), ((64, 128, 256), (128, 32, 8)))
    names = [f"image_{side}x{side}" for side in sides]
    updates = lab.pick(60, 2000)  # of each resolution

    def buckets(every: tuple[int, ...], weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> dict[str, Any]:
        fields = {
            name: {"batch": batch, "every": n, "weight": weight}
            for name, batch, n, weight in zip(names, batches, every, weights, strict=True)
        }
        return {"data.buckets": json.dumps(fields), "eval.every": updates // 3}

    def psnr(one: Trained) -> list[list[tuple[int, float]]]:
        return [one.curve(f"eval/{name}/psnr") for name in names]

    curves: dict[str, list[list[list[tuple[int, float]]]]] = {"one after the other": []}
    for seed in SEEDS:
        before, joined = None, [[] for _ in names]
        for stage in range(3):
            changes = buckets(tuple(1 if i == stage else NEVER for i in range(3)))
            changes |= {"init": before.folder} if before else {}
            before = lab.train(f"one after the other, {names[stage]}", seed, updates, changes)
            for curve, part in zip(joined, psnr(before), strict=True):
                curve += [(step + stage * updates, value) for step, value in part if step or not stage]
        curves["one after the other"].append(joined)
    for arm, weights in (("all at once", (1.0, 1.0, 1.0)), ("all at once, weighted", WEIGHTS)):
        trained = [lab.train(arm, seed, updates, buckets((1, 1, 1), weights)) for seed in SEEDS]
        curves[arm] = [psnr(one) for one in trained]

    final = {arm: np.array([[curve[-1][1] for curve in run] for run in runs]) for arm, runs in curves.items()}
    differences = [
        paired(
            f"PSNR at {sides[0]}x{sides[0]}, {arm} minus one after the other",
            "dB",
            final[arm][:, 0],
            final["one after the other"][:, 0],
            1,
        )
        for arm in ("all at once", "all at once, weighted")
    ]
    rows = [
        [arm, *(f"{values[:, i].mean():.2f} ± {values[:, i].std(ddof=1):.2f}" for i in range(3))]
        for arm, values in final.items()
    ]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3, sharey=False)
        for i, (axes, name) in enumerate(zip(panels, names, strict=True)):
            for arm, runs in curves.items():
                # An update of all resolutions takes as long as three of one.
                steps = np.array([step for step, _ in runs[0][i]]) / (
                    len(names) * updates if arm.startswith("one") else updates
                )
                values = np.mean([[value for _, value in run[i]] for run in runs], axis=0)
                axes.plot(steps, values, "o-", markersize=3, label=arm)
            axes.set_title(name, fontsize=10)
            axes.set_xlabel("share of the training")
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].set_ylabel("PSNR of held-out images, dB")
        panels[0].legend(frameon=False, fontsize=8)

    return Outcome(differences, ["order", *(f"{name}, dB" for name in names)], rows, draw)


LESSON = Lesson(
    name="forgetting",
    title="Forgetting low resolutions",
    claim=(
        "Trained on 180p, 360p and 720p in turn, the VAE was good at 720p and neglected the others."
        " Training on all resolutions at once, with weights 1.1, 0.1 and 0.01, cured that."
    ),
    setup="Images of three sizes: one after the other, all in every update, and all with the notes' weights.",
    run=run,
)
