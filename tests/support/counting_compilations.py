"""Runs vaejax.main and prints a line for every program that is compiled instead of loaded from the cache."""

import logging
import sys

import jax

from vaejax import main


def note(event: str, **_) -> None:
    if event == "/jax/compilation_cache/compile_requests_use_cache":
        print("asked for a program", flush=True)
    if event == "/jax/compilation_cache/cache_hits":
        print("loaded a program", flush=True)


if __name__ == "__main__":
    import functools

    from absl import app

    from vaejax import cli
    from vaejax.config.flag import parse

    jax.monitoring.register_event_listener(note)
    logging.getLogger("jax._src.compiler").setLevel(logging.DEBUG)
    sys.exit(cli.run(functools.partial(app.run, main.main, flags_parser=parse)))
