"""Files through a trained VAE: python -m vaejax.codec encode|decode|reconstruct IN OUT --model=PATH."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

from vaejax import cli
from vaejax.errors import FAILED, INPUT_ERROR, INTERRUPTED
from vaejax.runtime import cache

STOPPED = "stopped; the same command goes on"


class _Interrupt:
    """What Ctrl-C does; a second one ends the process at once.

    Attributes:
      stop: set by the first.
      now: 'imports', of which some crash if it is raised in them: the process ends. 'waits':
        KeyboardInterrupt is raised. 'works': `stop` is heeded by whoever works.
    """

    def __init__(self):
        self.stop, self.now = threading.Event(), "imports"

    def __call__(self, signum: int, frame: object) -> None:
        if self.stop.is_set():
            os._exit(INTERRUPTED)
        self.stop.set()
        if self.now == "imports":
            os.write(sys.stderr.fileno(), f"{STOPPED}\n".encode())
            os._exit(INTERRUPTED)
        if self.now == "waits":
            raise KeyboardInterrupt

    def check(self) -> None:
        """Raises KeyboardInterrupt if there was one."""
        if self.stop.is_set():
            raise KeyboardInterrupt


@contextlib.contextmanager
def _interruptible() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread() or (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):
        yield interrupt
        return
    # Where Python cannot raise, as in JAX's callback of the garbage collector, it tells of that instead.
    unraisable = sys.unraisablehook
    sys.unraisablehook = lambda told: None if interrupt.stop.is_set() else unraisable(told)
    former = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, former)
        sys.unraisablehook = unraisable


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""

    def work() -> int:
        with _interruptible() as interrupt:
            try:
                return _command(arguments, interrupt)
            except BrokenPipeError:  # such as head, which has read enough
                return FAILED

    return cli.run(work, STOPPED)


def _parser() -> argparse.ArgumentParser:
    from vaejax.codec.batch import DONE
    from vaejax.codec.latent_file import DTYPES, EXTENSION
    from vaejax.codec.load import DTYPES as COMPUTE

    parser = cli.parser(
        "vaejax.codec",
        "Photos and clips to latents and back with a trained VAE. Frame count, size, orientation, frame rate"
        f" and audio are kept. Of a folder a/b.mp4 becomes OUT/a/b.mp4{EXTENSION}, and again OUT/a/b.mp4;"
        " what is there already is left alone, so the same command goes on where it was stopped. Of what is"
        " there encode and decode check that the same model and settings made it; reconstruct does not look.",
        "encode ~/Videos latents --model=runs/demo",
    )
    parser.add_argument("action", choices=DONE, help="what to do")
    parser.add_argument("source", metavar="IN", help="a file, a folder, or - for stdin")
    parser.add_argument("target", metavar="OUT", help="a file, a folder, or - for stdout")
    parser.add_argument("--model", metavar="PATH", required=True, help="a run, or a folder of vaejax.export")
    parser.add_argument(
        "--step", metavar="N", type=cli.at_least(0), help="of a run: the checkpoint; default the last"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of latent files")
    parser.add_argument("--compute", choices=COMPUTE, default="", help="precision; default as trained")
    parser.add_argument(
        "--tile",
        metavar="PIXELS",
        type=cli.at_least(0),
        default=0,
        help="side of square tiles, for frames that do not fit into memory",
    )
    parser.add_argument(
        "--overlap",
        metavar="PIXELS",
        type=cli.at_least(0),
        help="of tiles; default what makes them exact, where the network allows it",
    )
    parser.add_argument(
        "--seed", metavar="N", type=cli.at_least(0), help="samples the posterior; default its mean"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=cli.at_least(1),
        default=2,
        help="files that are read and written at once, so that the device need not wait",
    )
    parser.add_argument(
        "--crf",
        metavar="N",
        type=_crf,
        default=16,
        help="quality of clips, 0 to 51: lower is better and larger",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=_shard,
        default=(0, 1),
        help="of a folder every Nth file, I from 0: for several machines",
    )
    return parser


def _command(arguments: list[str] | None, interrupt: _Interrupt) -> int:
    import vaejax
    from vaejax import files
    from vaejax.codec import tasks as listing
    from vaejax.codec.batch import DONE, Job
    from vaejax.codec.convert import Settings

    chosen = _parser().parse_args(arguments)
    interrupt.now = "waits"
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of how it was opened
    with listing.tasks(chosen.action, chosen.source, chosen.target, chosen.shard) as tasks:
        interrupt.now = "works"
        cache.keep_compiled()
        codec = vaejax.load(
            chosen.model, step=chosen.step, dtype=chosen.compute, tile=chosen.tile, overlap=chosen.overlap
        )
        codec.stream_encoder()  # says at once what no file can do without
        files.sweep(task.target for task in tasks)
        settings = Settings(chosen.dtype, chosen.seed, chosen.crf)
        job = Job(chosen.action, codec, settings, chosen.workers, interrupt.stop)
        job.run(tasks)
        interrupt.check()
        interrupt.now = "waits"
    outcomes = (DONE[chosen.action], "already there", "refused")
    told = [f"{job.counts[o]} {o}" for o in outcomes if job.counts[o] or o == outcomes[0]]
    print(", ".join(told), file=sys.stderr if chosen.target == listing.PIPE else sys.stdout)
    return INPUT_ERROR if job.counts["refused"] else 0


def _crf(text: str) -> int:
    if not text.isdigit() or int(text) > 51:
        raise argparse.ArgumentTypeError(f"{text}; accepted: 0 to 51")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    if not (part.isdigit() and parts.isdigit() and int(part) < int(parts)):
        raise argparse.ArgumentTypeError(f"{text}; accepted: I/N, I from 0 to N - 1")
    return int(part), int(parts)


if __name__ == "__main__":
    code = main()
    if code == INTERRUPTED:  # what still compiles would end an orderly end with an abort
        os._exit(code)
    sys.exit(code)
