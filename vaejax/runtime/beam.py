"""Work in pieces by Apache Beam: on a cluster of Dask, Flink, Spark or Dataflow, or on one machine."""

import argparse
import importlib.util
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from vaejax.errors import InputError, TrainingFailed, one_line

# Full names, and options that are set unless the user does.
_DIRECT = (
    "FnApiRunner",
    [
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=0",
        "--default_sdk_harness_log_level=CRITICAL",
    ],
)
_RUNNERS = {
    # Beam's DirectRunner would first download another runner, Prism.
    "DirectRunner": _DIRECT,
    # Dask makes one task of 128 elements unless a number of tasks is given.
    "DaskRunner": ("apache_beam.runners.dask.dask_runner.DaskRunner", ["--dask_npartitions=256"]),
}
_INSTALL = "pip install 'vaejax[beam]'"
ACCEPTED = "DirectRunner, DaskRunner, FlinkRunner, SparkRunner, DataflowRunner"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds --runner, which `parse` needs."""
    parser.add_argument(
        "--runner",
        metavar="NAME",
        default="",
        help=f"run on Apache Beam: {ACCEPTED}, or another of its runners; further flags, --NAME=VALUE, are"
        " Beam's options (default: the cores of this machine, without Beam)",
    )


def parse(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line; returns its flags, and the options for Beam, [] without --runner."""
    chosen, others = parser.parse_known_args(arguments)
    if others and not chosen.runner:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return chosen, [f"--runner={chosen.runner}", *others] if chosen.runner else []


def run(options: Sequence[str], build: Callable[[Any], Any]) -> None:
    """Runs a pipeline to its end.

    Args:
      options: `--runner=NAME` and further options of Beam, from `parse`.
      build: adds the transforms to a `beam.Pipeline`. The last one must depend on all others, because Dask
        runs only that. Functions are found by their names on the workers, so they must not be in __main__.

    Raises:
      InputError: if Beam is not installed, or the options are wrong.
      TrainingFailed: if the pipeline fails; its message names the reason.
    """
    name = options[0].partition("=")[2]
    if importlib.util.find_spec("apache_beam") is None:
        missing = "apache_beam is not installed"
        raise InputError(f"--runner={name}: {missing}; accepted: {_INSTALL}, or no --runner")
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions

    full_name, defaults = _RUNNERS.get(name, (name, []))
    given = {option.partition("=")[0] for option in options}
    if "--dask_partition_size" in given:  # excludes --dask_npartitions
        defaults = []
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # it logs errors that are raised, too
    logging.getLogger("distributed").setLevel(logging.ERROR)
    accepted = "accepted: Beam's options, as --NAME=VALUE"
    try:
        runner = apache_beam.runners.create_runner(full_name)
        parsed = PipelineOptions([*options[1:], *(d for d in defaults if d.partition("=")[0] not in given)])
        every, known = parsed.get_all_options(retain_unknown_options=True), parsed.get_all_options()
    except SystemExit:  # argparse has printed the reason
        raise InputError(f"--runner={name}: wrong options; {accepted}") from None
    except ImportError as error:
        raise InputError(f"--runner={name}: {one_line(error)}; accepted: {_INSTALL}") from error
    except ValueError as error:
        raise InputError(f"--runner={name}: {one_line(error)}; accepted: {ACCEPTED}") from error
    if unknown := sorted(every.keys() - known.keys()):
        raise InputError(f"--{unknown[0]}: no option of Beam has this name; {accepted}")
    pipeline = apache_beam.Pipeline(runner=runner, options=parsed)
    build(pipeline)
    try:
        state = pipeline.run().wait_until_finish()
    except Exception as error:  # Beam, gRPC and Dask raise many types
        raise TrainingFailed(f"--runner={name}: {_reason(error)}; the same command continues") from error
    if state != "DONE":
        raise TrainingFailed(f"--runner={name}: the job ended as {state}; the same command continues")


def _reason(error: Exception) -> str:
    """Why a pipeline failed, in one line; the message of the error may be a traceback of a worker."""
    text = str(error)
    if "closed prematurely" in text:
        return "a worker process ended"
    if own := re.search(r"vaejax\.errors\.\w+: (.*?)(?: \[while running .*)?$", text, re.MULTILINE):
        return own[1]
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
    return lines[-1][:200] if lines else type(error).__name__
