"""Lesson 7: photos of low JPEG quality teach the latents noise."""

import pathlib
from typing import Any

import numpy as np
from PIL import Image

import vaejax
from benchmarks.field_notes import generators, pictures, tiles
from benchmarks.field_notes.lab import Lab
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import paired
from vaejax.evaluate import latent_metrics, metrics
from vaejax.models.pixels import from_uint8

SEEDS = (0, 1, 2)
QUALITY, MIN_QUALITY = 10, 50
CUTOFF = "0.5"  # of the share of energy at high frequencies, see latent_metrics


def run(lab: Lab) -> Outcome:
    """Trains on clean photos, on a mixture with JPEG of quality 10, and on the mixture without these."""
    clean, mixed = lab.out / "clean", lab.out / "mixed"
    tiles.write(clean)
    tiles.write(mixed, _half_as_jpeg)
    side, batch, steps = lab.pick((64, 8, 300), (256, 32, 10_000))
    arms = {
        "clean": {"data.media": clean},
        "half at quality 10": {"data.media": mixed},
        f"with min_quality {MIN_QUALITY}": {"data.media": mixed, "data.min_quality": MIN_QUALITY},
    }
    changes = {
        "data.buckets": f'{{"image_{side}x{side}": {{"batch": {batch}}}}}',
        "data.sources": "{}",
        "data.zoom": 1.5,
        "eval.every": steps,
    }
    trained = {arm: [lab.train(arm, s, steps, changes | more) for s in SEEDS] for arm, more in arms.items()}
    photos = pictures.held_out(side, 48)

    def scores() -> dict[str, Any]:
        found: dict[str, Any] = {}
        judge = generators.judge(clean, side, lab.preset)
        for arm, runs in trained.items():
            rows = []
            for one in runs:
                codec = vaejax.load(one.folder)
                moments = latent_metrics.LatentMoments()
                moments.add(np.asarray(codec.encode(photos[:, None], normalize=False)))
                decoded = from_uint8(pictures.reconstructed(one, photos)[:, None])
                rows.append(
                    {
                        "psnr": float(metrics.psnr(from_uint8(photos[:, None]), decoded).mean()),
                        "high": 100 * moments.statistics()["sec"][CUTOFF],
                        "kernel": generators.score(judge, one, seeds=1)["kernel"]["mean"],
                    }
                )
            found[arm] = {key: [row[key] for row in rows] for key in rows[0]}
        return found

    found = lab.compute("scores", {"steps": steps, "seeds": SEEDS}, scores)
    base, worse, kept_out = (found[arm] for arm in arms)
    differences = [
        paired("PSNR of clean photos, half at quality 10 minus clean", "dB", worse["psnr"], base["psnr"], -1),
        paired("energy of latents at high frequencies, the same", "%", worse["high"], base["high"], 1),
        paired("kernel distance of generated photos, the same", "", worse["kernel"], base["kernel"], 1),
        paired("PSNR of clean photos, min_quality minus none", "dB", kept_out["psnr"], worse["psnr"], 1),
    ]
    columns = {"psnr": "PSNR of clean photos, dB", "high": "high frequencies, %", "kernel": "kernel distance"}
    rows = [
        [arm, *(f"{np.mean(one[key]):.2f} ± {np.std(one[key], ddof=1):.2f}" for key in columns)]
        for arm, one in found.items()
    ]

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3)
        for axes, (key, title) in zip(panels, columns.items(), strict=True):
            for i, one in enumerate(found.values()):
                axes.plot(one[key], [i] * len(SEEDS), "o", alpha=0.6)
                axes.plot(np.mean(one[key]), i, "k|", markersize=18)
            axes.set_yticks(range(len(found)), list(found) if axes is panels[0] else [""] * len(found))
            axes.invert_yaxis()
            axes.set_title(title, fontsize=10)
            axes.spines[["top", "right"]].set_visible(False)

    return Outcome(differences, ["trained on", *columns.values()], rows, draw)


def _half_as_jpeg(tile: Image.Image, path: pathlib.Path, number: int) -> None:
    if number % 2:
        tile.save(path.with_name(f"{path.name}.jpg"), quality=QUALITY)
    else:
        tile.save(path.with_name(f"{path.name}.png"))


LESSON = Lesson(
    name="jpeg",
    title="JPEG",
    claim=(
        "Photos of low JPEG quality are harder to reconstruct than real detail. A VAE that is forced to"
        " reconstruct them fills its latents with noise."
    ),
    setup=(
        f"The same photos, clean, with half of them at JPEG quality {QUALITY}, and with that half kept"
        " out by data.min_quality. Scored on clean photos that no run has seen, and by the diffusion"
        " probe."
    ),
    run=run,
)
