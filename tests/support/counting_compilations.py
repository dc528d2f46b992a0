"""Runs vaejax.main and prints a line for each program requested from JAX's cache, and for each found."""

import functools
import sys

import jax
from absl import app

from vaejax import cli, main
from vaejax.config.flag import parse

LINES = {
    "/jax/compilation_cache/compile_requests_use_cache": "asked for a program",
    "/jax/compilation_cache/cache_hits": "loaded a program",
}


def note(event: str, **_) -> None:
    if event in LINES:
        print(LINES[event], flush=True)


if __name__ == "__main__":
    jax.monitoring.register_event_listener(note)
    sys.exit(cli.run(functools.partial(app.run, main.main, flags_parser=parse)))
