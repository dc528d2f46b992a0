"""Lesson 5: attention makes black dots above the resolution of training; normalization cures them."""

from typing import Any

import numpy as np

from benchmarks.field_notes import pictures
from benchmarks.field_notes.lab import Lab
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import paired
from vaejax.evaluate import metrics
from vaejax.models.pixels import from_uint8

SEEDS = (0, 1, 2)
PLAIN = {"model.attention": True, "model.qk_norm": False}
ARMS = {
    "no attention": {},
    "attention": PLAIN,
    "QK normalization": PLAIN | {"model.qk_norm": True},
    "and PixelNorm": PLAIN | {"model.qk_norm": True, "model.pixel_norm": True},
}
TIMES = 4  # side of the scored photos over that of training


def run(lab: Lab) -> Outcome:
    """Trains on small images, and scores photos four times as wide."""
    side, batch, steps = lab.pick((64, 8, 200), (256, 32, 10_000))
    changes = {
        "data.buckets": f'{{"image_{side}x{side}": {{"batch": {batch}}}}}',
        "optim.learning_rate": 3e-3,
        "eval.every": steps,
    }
    trained = {arm: [lab.train(arm, s, steps, changes | more) for s in SEEDS] for arm, more in ARMS.items()}
    photos = {"as in training": pictures.held_out(side, 16), "larger": pictures.held_out(TIMES * side, 8)}

    def scores() -> dict[str, Any]:
        found = {}
        for arm, runs in trained.items():
            for size, originals in photos.items():
                x = from_uint8(originals[:, None])
                decoded = [from_uint8(pictures.reconstructed(one, originals)[:, None]) for one in runs]
                found[f"{arm}, {size}"] = {
                    "psnr": [float(metrics.psnr(x, y).mean()) for y in decoded],
                    "spots": [100 * float(metrics.spots(x, y).mean()) for y in decoded],
                }
        return found

    found = lab.compute("scores", {"steps": steps, "seeds": SEEDS}, scores)

    def lost(arm: str) -> np.ndarray:
        """The PSNR that larger photos lose, beyond what they lose without attention."""
        small, large = (np.array(found[f"{arm}, {size}"]["psnr"]) for size in photos)
        return small - large

    plain = found["attention, larger"]["spots"]
    differences = [
        paired(
            "PSNR lost on larger photos, attention minus none",
            "dB",
            lost("attention"),
            lost("no attention"),
            1,
        ),
        paired(
            "the same, attention minus QK-normalized", "dB", lost("attention"), lost("QK normalization"), 1
        ),
        paired(
            "pixels in spots of larger photos, attention minus QK-normalized",
            "%",
            plain,
            found["QK normalization, larger"]["spots"],
            1,
        ),
    ]
    rows = [
        [
            arm,
            *(
                f"{np.mean(found[f'{arm}, {size}'][score]):.3f}"
                for score in ("psnr", "spots")
                for size in photos
            ),
        ]
        for arm in ARMS
    ]

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2, width_ratios=(2, 3))
        for i, arm in enumerate(ARMS):
            left.plot(lost(arm), [i] * len(SEEDS), "o")
        left.set_yticks(range(len(ARMS)), list(ARMS))
        left.invert_yaxis()
        left.set_xlabel(f"PSNR lost at {TIMES} times the side of training, dB")
        left.spines[["top", "right"]].set_visible(False)
        shown = photos["larger"][:4]
        decoded = {arm: pictures.reconstructed(runs[0], shown) for arm, runs in trained.items()}
        pictures.show(right, {"original": shown} | decoded)

    sizes = [f"PSNR, {size}" for size in photos] + [f"spots %, {size}" for size in photos]
    return Outcome(differences, ["network", *sizes], rows, draw)


LESSON = Lesson(
    name="attention",
    title="Black dots of attention",
    claim=(
        "Attention at the lowest resolution left black dots, at resolutions above those of training."
        " Normalized queries and keys, and a normalization of pixels, cured them."
    ),
    setup=(
        "Networks without attention, with it, with normalized queries and keys, and with PixelNorm"
        f" besides, trained on images and scored on photos of {TIMES} times their side."
    ),
    run=run,
)
