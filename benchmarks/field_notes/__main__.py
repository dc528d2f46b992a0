"""Repeats the lessons of the field notes as small experiments.

    python -m benchmarks.field_notes --out=DIR [LESSON ...]

Run it in a checkout. It trains from photos and clips that packages ship, or from --data=FOLDER. It leaves
DIR/field-notes.html and, with --document=docs/field-notes.md, the page of the documentation. Rerun the same
command to continue, or to draw the page anew. On two cores, all lessons take three hours; --preset=gpu trains
at 256x256. Requires matplotlib and scipy.
"""

import argparse
import datetime
import os
import pathlib
import platform
import sys

import jax

from benchmarks.field_notes import (
    attention,
    film,
    forgetting,
    generation,
    jpeg,
    loss_scale,
    nan,
    page,
    spots,
)
from benchmarks.field_notes.lab import Lab
from vaejax import __version__, cli

LESSONS = {
    module.LESSON.name: module.LESSON
    for module in (loss_scale, nan, spots, film, attention, forgetting, jpeg, generation)
}


def main() -> int:
    """Parses the command line and runs the lessons."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.field_notes", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("lessons", nargs="*", metavar="LESSON", help=f"{', '.join(LESSONS)} (default: all)")
    parser.add_argument("--out", required=True, help="folder for runs and results")
    parser.add_argument(
        "--data", default="", help="folder of photos and clips (default: those that packages ship)"
    )
    parser.add_argument(
        "--preset", choices=("cpu", "gpu"), default="cpu", help="two cores, or one GPU (default: cpu)"
    )
    parser.add_argument(
        "--document", type=pathlib.Path, help="Markdown file to write or update, with figures beside it"
    )
    args, more = parser.parse_known_args()
    if unknown := set(args.lessons) - set(LESSONS):
        parser.error(f"no lesson {sorted(unknown)[0]!r}; accepted: {', '.join(LESSONS)}")
    return cli.run(lambda: repeat(args, more))


def repeat(args: argparse.Namespace, more: list[str]) -> None:
    """Runs the lessons, and writes the page after each."""
    out, done = cli.made_folder(args.out), []
    circumstances = {
        "Machine": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].device_kind}",
        "Media": args.data or "photos and clips that packages ship",
        "Version": f"vaejax {__version__}, JAX {jax.__version__}",
        "Date": f"{datetime.datetime.now():%Y-%m-%d}",
    }
    for name in args.lessons or LESSONS:
        lesson, lab = LESSONS[name], Lab(cli.made_folder(out / name), args.preset, args.data, more)
        outcome = lesson.run(lab)
        done.append((lesson, outcome, lab.seconds()))
        page.write(done, circumstances, out, [each.title for each in LESSONS.values()], args.document)
        print(f"{lesson.title}: {outcome.verdict}, {lab.seconds() / 60:.0f} minutes")
        for difference in outcome.differences:
            print(f"  {difference.sentence()}")
    print(f"look at: {out / 'field-notes.html'}")


if __name__ == "__main__":
    sys.exit(main())
