"""Runs python -m vaejax.watch once its arguments are parsed."""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from vaejax import cli
from vaejax.errors import InputError
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import storage
from vaejax.watch import render
from vaejax.watch.reader import State, read


def run(options: argparse.Namespace) -> None:
    """Writes the page, then again every `options.every` seconds until all runs are done.

    Raises:
      InputError: if a folder is not a run, or the page cannot be written.
    """
    out = storage.located(options.out or storage.join(RunFolder(options.runs[0]).name, "watch.html"))
    if os.path.isdir(out):
        raise InputError(f"--out={options.out}: a folder; accepted: a file, such as watch.html")
    first = True
    while True:
        done = write(out, options.runs, 0 if options.once else options.every)
        if first:
            following = "" if options.once or done else f", refreshed every {options.every:g} s; Ctrl-C stops"
            print(f"page: {out}{following}", file=sys.stderr)
        if options.once or done:
            return
        first = False
        time.sleep(options.every)


def write(out: str, names: Sequence[str], every: float) -> bool:
    """Writes the page atomically; returns whether all runs are done.

    Args:
      out: path or URL of the file.
      names: folders of the runs.
      every: seconds after which the page loads itself again while a run is not done; 0: never.

    Raises:
      InputError: if a folder is not a run, or the page cannot be written.
    """
    now = time.time()
    runs = [read(name, now) for name in names]
    done = all(one.state is State.DONE for one in runs)
    text = render.html(runs, now, 0 if done else every)
    with cli.writing(out), storage.new_file(out) as file:
        file.write(text.encode("utf-8", "replace"))
    return done
