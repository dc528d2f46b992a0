"""Work in pieces by Apache Beam: on a cluster of Dask, Flink, Spark or Dataflow, or on one machine."""

import argparse
import base64
import contextlib
import importlib.util
import io
import json
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vaejax.errors import InputError, TrainingFailed

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
_AGAIN = "; the same command continues"
_LOST = f"a worker process ended{_AGAIN}"
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
    if name == "DirectRunner":
        _run_apart(options, build)
    else:
        _run_here(options, build)


def _run_here(options: Sequence[str], build: Callable[[Any], Any]) -> None:
    name = options[0].partition("=")[2]
    with _quiet():
        runner, parsed = _parsed(name, options[1:])
        import apache_beam  # pyright: ignore

        pipeline = apache_beam.Pipeline(runner=runner, options=parsed)
        build(pipeline)
        try:
            result = pipeline.run()
            state = result.wait_until_finish()
            if client := getattr(result, "client", None):  # of Dask; a second pipeline starts another
                client.close()
        except Exception as error:  # Beam, gRPC and Dask raise many types
            raise TrainingFailed(f"--runner={name}: {_reason(error)}") from error
    if state != "DONE":
        raise TrainingFailed(f"--runner={name}: the job ended as {state}{_AGAIN}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without logging below errors; Beam and Dask log every connection."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)  # errors are raised, too
    try:
        yield
    finally:
        logging.disable(before)


def _parsed(name: str, options: Sequence[str]) -> tuple[Any, Any]:
    """The runner and the parsed options of Beam; raises InputError if they are wrong."""
    from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore
    from apache_beam.runners.runner import create_runner  # pyright: ignore

    full_name, defaults = _RUNNERS.get(name, (name, []))
    given = {option.partition("=")[0] for option in options}
    if "--dask_partition_size" in given:  # excludes --dask_npartitions
        defaults = []
    try:
        runner = create_runner(full_name)
    except (ValueError, ImportError, AttributeError):
        raise InputError(f"--runner={name}: Beam has no such runner; accepted: {ACCEPTED}") from None
    wrong, accepted = io.StringIO(), "accepted: Beam's options, as --NAME=VALUE"
    try:
        with contextlib.redirect_stderr(wrong):
            parsed = PipelineOptions(
                [*options, *(option for option in defaults if option.partition("=")[0] not in given)]
            )
            every, known = parsed.get_all_options(retain_unknown_options=True), parsed.get_all_options()
    except SystemExit:  # of argparse, which has printed the reason
        reason = wrong.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise InputError(f"--runner={name}: {reason}; {accepted}") from None
    if unknown := sorted(every.keys() - known.keys()):
        raise InputError(f"--{unknown[0]}: Beam has no such option; {accepted}")
    return _in_processes(parsed) if name == "DirectRunner" else runner, parsed


def _run_apart(options: Sequence[str], build: Callable[[Any], Any]) -> None:
    """Runs a pipeline in a process group of its own, which is killed at the end.

    Beam's runner would wait forever for a worker process that was killed.
    """
    paths = [os.path.abspath(path) for path in sys.path if not path or os.path.isdir(path)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from vaejax.runtime import beam; beam.serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,
        )
        assert process.stdin and process.stdout
        try:
            process.stdin.write(base64.b64encode(pickle.dumps((options, build))) + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not answer:
            log.seek(0)
            last = " ".join(log.read().split("\n")[-2:]).strip()
            raise TrainingFailed(f"{options[0]}: a process ended ({last}){_AGAIN}")
    error, reason = json.loads(answer)
    if error:
        raise {"InputError": InputError, "TrainingFailed": TrainingFailed}[error](reason)


def serve() -> None:
    """The process of `_run_apart`: runs the pipeline in a line of stdin; writes [error, reason] to stdout."""
    stdout = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the worker processes write to stderr instead

    def answer(error: str = "", reason: str = "") -> None:
        print(json.dumps([error, reason]), file=stdout, flush=True)

    options, build = pickle.loads(base64.b64decode(sys.stdin.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Beam waits for each worker process in a thread, and raises an error there if it ends early.
    threading.excepthook = lambda _: answer("TrainingFailed", f"{options[0]}: {_LOST}")
    try:
        _run_here(options, build)
    except (InputError, TrainingFailed) as error:
        answer(type(error).__name__, str(error))
    else:
        answer()


def _end_with_parent() -> None:
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def _in_processes(options: Any) -> Any:
    """Beam's runner in processes of this machine, which receive all options."""
    from apache_beam.portability.api import beam_provision_api_pb2  # pyright: ignore
    from apache_beam.runners.portability.fn_api_runner import fn_runner  # pyright: ignore
    from apache_beam.runners.portability.portable_runner import JobServiceHandle  # pyright: ignore

    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


def _reason(error: Exception) -> str:
    """Why a pipeline failed, in one line; the message of the error may be a traceback of a worker."""
    text = str(error)
    if "closed prematurely" in text:
        return _LOST
    if own := re.search(r"vaejax\.errors\.\w+: (.*?)(?: \[while running .*)?$", text, re.MULTILINE):
        return f"{own[1]}{_AGAIN}"
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(" ")]
    return f"{lines[-1][:200] if lines else type(error).__name__}{_AGAIN}"
