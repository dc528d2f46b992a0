"""Encodes and decodes files: python -m vaejax.codec encode|decode|reconstruct IN OUT --model=PATH."""

import argparse
import contextlib
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vaejax import cli
from vaejax.errors import FAILED, INPUT_ERROR, INTERRUPTED, InputError, Stopped
from vaejax.runtime import beam

if TYPE_CHECKING:
    from vaejax.codec.batch import Outcome
    from vaejax.codec.codec import Codec

COMPUTE_DTYPES = ("float32", "bfloat16")  # a copy of load.DTYPES: importing load imports JAX, even for --help
STOPPED = "stopped; run the same command again to continue"


class _Interrupt:
    """The handler of Ctrl-C; a second Ctrl-C ends the process at once.

    Attributes:
      stop: set by the first Ctrl-C.
      phase: what the first Ctrl-C does. 'imports': it ends the process, since an exception would crash some
        imports. 'waits': it raises KeyboardInterrupt. 'works': the worker threads end, because `stop` is set.
    """

    def __init__(self):
        self.stop, self.phase = threading.Event(), "imports"

    def __call__(self, signum: int, frame: object) -> None:
        if self.stop.is_set():
            os._exit(INTERRUPTED)
        self.stop.set()
        if self.phase == "imports":
            os.write(sys.stderr.fileno(), f"{STOPPED}\n".encode())
            os._exit(INTERRUPTED)
        if self.phase == "waits":
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def working(self) -> Iterator[threading.Event]:
        """A context in which worker threads end when the event is set; raises KeyboardInterrupt then."""
        self.phase = "works"
        with contextlib.suppress(Stopped):
            yield self.stop
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.phase = "waits"


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        yield interrupt
        return
    # After a Ctrl-C, hides exceptions that Python only prints because it cannot raise them, for example in a
    # callback of JAX during garbage collection.
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda error: None if interrupt.stop.is_set() else unraisable(error)
    former = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, former)
        sys.unraisablehook = unraisable


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""

    def work() -> int:
        with _interruptible() as interrupt:
            try:
                return _command(arguments, interrupt)
            except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
                return FAILED

    return cli.run(work, STOPPED)


def _parser() -> argparse.ArgumentParser:
    from vaejax.codec.latent_file import DTYPES, EXTENSION
    from vaejax.codec.tasks import DECODE, ENCODE, LATENT, RECONSTRUCT

    parser = cli.parser(
        "vaejax.codec",
        "Encodes photos and clips to latent files with a trained VAE, and decodes them. Frame count, size,"
        f" orientation, frame rate and audio are kept. In folders, a/b.mp4 becomes OUT/a/b.mp4{EXTENSION} and"
        " is decoded to OUT/a/b.mp4. The same command continues after a stop: it keeps the files in an output"
        " folder that the same source, model and settings made, and makes the others again. It refuses to"
        " replace a file that vaejax did not write, or latents of another model or other settings. If a file"
        " is refused, the other files are still processed, and the exit code is 2, or 0 with --keep-going."
        " --format writes tars or Parquet files of latents instead, for trainers without vaejax.",
        "encode ~/Videos latents --model=runs/demo",
    )
    parser.add_argument(
        "action",
        choices=(ENCODE, DECODE, RECONSTRUCT),
        help="encode to latent files, decode them, or do both",
    )
    parser.add_argument(
        "source",
        metavar="IN",
        help="a file, a folder, or - for stdin; for encode also an entry of data.sources as JSON, such as"
        ' {"kind": "webdataset", "path": "/data/tars"}',
    )
    parser.add_argument("target", metavar="OUT", help="a file, a folder, or - for stdout")
    parser.add_argument("--model", metavar="PATH", required=True, help="a run, an export or a published VAE")
    parser.add_argument(
        "--step", metavar="N", type=cli.at_least(0), help="step of the checkpoint; default: the latest"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="data type of the latents; default: float16"
    )
    parser.add_argument(
        "--compute", choices=COMPUTE_DTYPES, default="", help="compute dtype; default: as trained"
    )
    parser.add_argument(
        "--tile",
        metavar="PIXELS",
        type=cli.at_least(0),
        default=0,
        help="side of square tiles, for frames that do not fit into memory; default: whole frames",
    )
    parser.add_argument(
        "--overlap",
        metavar="PIXELS",
        type=cli.at_least(0),
        help="overlap of tiles; default: enough for exact results if possible, else a quarter of a tile",
    )
    parser.add_argument(
        "--seed",
        metavar="N",
        type=cli.at_least(0),
        help="seed for sampling the posterior; default: the posterior's mean, without sampling",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=cli.at_least(1),
        default=2,
        help="number of files processed at a time, to keep the device busy; default: 2",
    )
    parser.add_argument(
        "--crf",
        metavar="N",
        type=_crf,
        default=16,
        help="constant rate factor of clips, 0 to 51; lower means better quality, larger files; clips with"
        " alpha in .mov have none; default: 16",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        default=(0, 1),
        help="process only files I, I + N, I + 2N, ... of a folder (I from 0 to N - 1), on one of N machines;"
        " default: all files",
    )
    parser.add_argument(
        "--format",
        choices=(LATENT, "webdataset", "parquet"),
        default=LATENT,
        help="what encode writes: a latent file for each photo and clip, or tars or Parquet files of many"
        " latents with the captions and labels of the source; default: latent",
    )
    parser.add_argument(
        "--shard-mb",
        metavar="MB",
        type=cli.at_least(0.001, float),
        default=256.0,
        help="megabytes of latents per tar, Parquet file or piece of work of a cluster; default: 256",
    )
    beam.add_flag(parser)
    parser.add_argument(
        "--keep-going",
        action="store_true",
        help="for a folder: name refused files at the end and exit with 0, so that one bad file does not fail"
        " an array job; the exit code is still 2 if an output cannot be written; default: exit with 2",
    )
    return parser


def _command(arguments: list[str] | None, interrupt: _Interrupt) -> int:
    flags, options = beam.parse(_parser(), arguments)
    started = time.monotonic()
    # Imported here, so that --help does not import JAX.
    from vaejax import files
    from vaejax.codec.shards.encode import encode
    from vaejax.codec.tasks import ENCODE, LATENT, PIPE
    from vaejax.data.sources import is_entry
    from vaejax.runtime import storage

    is_folder = flags.source != PIPE and os.path.isdir(files.expand_home(flags.source))
    is_collection = is_entry(flags.source) or (flags.action == ENCODE and storage.is_url(flags.source))
    if flags.keep_going and not is_folder and not is_collection:
        raise InputError(f"--keep-going: IN = {flags.source} is not a folder; accepted: a folder")
    in_shards = is_collection or flags.format != LATENT or bool(options)
    if in_shards and flags.action != ENCODE:
        raise InputError(
            f"{flags.action}: --runner, --format and IN as JSON are for encode; accepted: a path"
        )
    interrupt.phase = "waits"
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs how it opens checkpoints
    outcome = encode(flags, options, interrupt.working) if in_shards else _convert(flags, interrupt)
    summary = _summary(flags, outcome, time.monotonic() - started)
    print(summary, file=sys.stderr if flags.target == PIPE else sys.stdout)
    if flags.keep_going and outcome.refused:
        print(f"refused: {', '.join(sorted(outcome.refused))}", file=sys.stderr)
    forgiven = flags.keep_going and not outcome.unwritable
    return INPUT_ERROR if outcome.refused and not forgiven else 0


def _convert(flags: argparse.Namespace, interrupt: _Interrupt) -> "Outcome":
    """Converts files one by one, and those in shards of latents."""
    import vaejax
    from vaejax import files
    from vaejax.codec.batch import BatchConverter
    from vaejax.codec.load import pixel_channels
    from vaejax.codec.origin import Settings
    from vaejax.codec.shards.decode import decode, has_shards
    from vaejax.codec.tasks import DECODE, open_tasks
    from vaejax.runtime import cache

    def batch() -> "tuple[Codec, BatchConverter]":
        cache.keep_compiled()
        codec = vaejax.load(
            flags.model, step=flags.step, dtype=flags.compute, tile=flags.tile, overlap=flags.overlap
        )
        codec.stream_encoder()  # raises at once if the model has no latent statistics, which every file needs
        settings = Settings(flags.dtype, flags.seed, flags.crf)
        return codec, BatchConverter(flags.action, codec, settings, flags.workers, interrupt.stop)

    if flags.action == DECODE and has_shards(files.expand_home(flags.source)):
        with interrupt.working():
            codec, converter = batch()
            source, target = map(files.expand_home, (flags.source, flags.target))
            decode(source, target, flags.shard, codec, converter)
        return converter.outcome
    channels = pixel_channels(flags.model)
    opened = open_tasks(flags.action, flags.source, flags.target, flags.shard, channels)
    with opened as tasks, interrupt.working():
        _, converter = batch()
        files.sweep(task.target for task in tasks)
        converter.run(tasks)
    return converter.outcome


def _summary(flags: argparse.Namespace, outcome: "Outcome", seconds: float) -> str:
    """The last lines of a command: what was done, how long it took, and what to do next."""
    from vaejax.codec.batch import ALREADY_THERE, DONE, REFUSED
    from vaejax.codec.tasks import DECODE, ENCODE, LATENT, PIPE
    from vaejax.files import expand_home

    counts, names = outcome.counts, (DONE[flags.action], ALREADY_THERE, REFUSED)
    done = ", ".join(f"{counts[name]} {name}" for name in names if counts[name] or name == names[0])
    lines = [f"{done} in {seconds:.1f} s"]
    if flags.target == PIPE:
        return lines[0]
    lines[0] += f": {flags.target}"
    source, target, model = (shlex.quote(path) for path in (flags.source, flags.target, flags.model))
    if outcome.other_settings:
        lines.append(
            "next: another OUT, or the --model and flags that encoded"
            f" {outcome.other_settings} of the files before"
        )
    elif counts[REFUSED] and flags.format != LATENT:
        lines.append("next: see the errors above; correct or remove these files, and run the same command")
    elif counts[REFUSED]:
        lines.append("next: see the errors above; the same command retries only the refused files")
    elif flags.action == ENCODE:
        step = "" if flags.step is None else f" --step={flags.step}"
        lines.append(f"next: python -m vaejax.codec decode {target} DECODED/ --model={model}{step}")
    elif flags.action == DECODE or flags.source == PIPE:
        lines.append(f"next: look at {flags.target}")
    elif os.path.isdir(expand_home(flags.source)):
        scores = f"python -m vaejax.evaluate --checkpoint={model} --data={source} --out=SCORES"
        lines.append(f"next: compare {flags.source} with {flags.target} by eye, or by scores: {scores}")
    else:
        lines.append(f"next: compare {flags.source} with {flags.target}")
    return "\n".join(lines)


def _crf(text: str) -> int:
    if not text.isdigit() or int(text) > 51:
        raise argparse.ArgumentTypeError(f"{text}; accepted: a whole number from 0 to 51")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text}; accepted: I/N with I from 0 to N - 1")
    return int(part), int(parts)


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:  # a normal exit would crash if a compilation is still running
        os._exit(code)
    sys.exit(code)
