"""The command python -m vaejax.watch RUN [RUN ...], which keeps a page about runs up to date.

The page is one HTML file, RUN/watch.html, that needs no other file and no network. The command only reads the
folders of the runs. Several runs share the axes of each chart.
"""

import os
import sys

from vaejax import cli


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = cli.parser(
        "vaejax.watch",
        "Writes RUN/watch.html, a self-contained page with the curves, scores, panels, verdicts, bad steps"
        " and unreadable files of a run, and refreshes it until the run ends. Several runs share one page.",
        "runs/demo",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run, its --workdir")
    parser.add_argument(
        "--out", metavar="FILE", default="", help="the page (default: watch.html in the first RUN)"
    )
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=cli.at_least(1, float),
        default=30.0,
        help="seconds between refreshes (default: 30)",
    )
    parser.add_argument(
        "--once", action="store_true", help="write the page once and exit (default: refresh it)"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        from vaejax.watch import command  # here, because --help needs no JAX

        command.run(options)

    return cli.run(work, "stopped; the page stays")


if __name__ == "__main__":
    os.nice(19)  # the run may train on the same cores
    sys.exit(main())
