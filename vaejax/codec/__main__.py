"""Files through a trained VAE: python -m vaejax.codec encode|decode|reconstruct IN OUT --model=PATH."""

import argparse
import collections
import logging
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tqdm import tqdm

import vaejax
from vaejax import command
from vaejax.codec import files, unfinished
from vaejax.codec.codec import Codec
from vaejax.codec.files import DECODE, ENCODE, RECONSTRUCT, Task
from vaejax.codec.latent_file import DTYPES, EXTENSION, LatentFile
from vaejax.codec.media_file import Converter, Settings
from vaejax.codec.trained import DTYPES as COMPUTE
from vaejax.errors import InputError

DONE = {ENCODE: "encoded", DECODE: "decoded", RECONSTRUCT: "reconstructed"}


class _Stopped(Exception):
    """Another file's failure or Ctrl-C ends this one's work."""


class _Job:
    """Does tasks, several files at once, and counts how they went."""

    def __init__(self, action: str, codec: Codec, settings: Settings, workers: int):
        self._action, self._codec, self._workers = action, codec, workers
        self._converter = Converter(codec, settings, self._progressed, self._tell)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._frames, self._shown = 0, 0.0
        self._bar: tqdm | None = None
        self.counts: collections.Counter[str] = collections.Counter()

    def run(self, tasks: list[Task]) -> None:
        """Does all tasks; what cannot be done is told by name."""
        with (
            tqdm(total=len(tasks), unit=" files", file=sys.stderr) as self._bar,
            ThreadPoolExecutor(self._workers) as pool,
        ):
            work = [pool.submit(self._do, task) for task in tasks]
            try:
                wait(work, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                self._show()
        for one in work:
            if not one.cancelled() and not isinstance(one.exception(), _Stopped):
                one.result()

    def _do(self, task: Task) -> None:
        try:
            outcome = self._outcome(task)
        except InputError as error:
            self._tell(f"error: {error}")
            outcome = "refused"
        with self._lock:
            self.counts[outcome] += 1
            self._bar.update()

    def _outcome(self, task: Task) -> str:
        if task.refusal:
            raise InputError(f"{task.name}: {task.refusal}")
        if task.keep and task.target.exists():
            if self._action == ENCODE:
                there = LatentFile(task.target).facts.model
                if there != self._codec.fingerprint:
                    raise InputError(f"{task.target}: {self._codec.another_model(there)}")
            return "already there"
        try:
            task.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{task.target}: {error.strerror}; accepted: one that can be written") from error
        if self._action == ENCODE:
            self._converter.encode(task.source, task.target, task.name, task.kind)
        elif self._action == DECODE:
            self._converter.decode(task.source, task.target, task.name, task.extension)
        else:
            self._converter.reconstruct(task.source, task.target, task.name, task.kind, task.extension)
        return DONE[self._action]

    def _progressed(self, frames: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._frames += frames
            if time.monotonic() - self._shown > 0.2:
                self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._bar.set_postfix(frames=self._frames)

    def _tell(self, line: str) -> None:
        with self._lock:
            tqdm.write(line, file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.parser(
        "vaejax.codec",
        "Photos and clips to latents and back with a trained VAE. Frame count, size, orientation, frame rate"
        f" and audio are kept. Of a folder a/b.mp4 becomes OUT/a/b.mp4{EXTENSION}, and again OUT/a/b.mp4;"
        " what is there already is left alone, so the same command goes on where it was stopped.",
        "encode ~/Videos latents --model=runs/demo",
    )
    parser.add_argument("action", choices=DONE, help="what to do")
    parser.add_argument("source", metavar="IN", help="a file, a folder, or - for stdin")
    parser.add_argument("target", metavar="OUT", help="a file, a folder, or - for stdout")
    parser.add_argument("--model", metavar="PATH", required=True, help="a run, or a folder of vaejax.export")
    parser.add_argument(
        "--step", metavar="N", type=command.at_least(0), help="of a run: the checkpoint; default the last"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="of latent files")
    parser.add_argument("--compute", choices=COMPUTE, default="", help="precision; default as trained")
    parser.add_argument(
        "--tile",
        metavar="PIXELS",
        type=command.at_least(0),
        default=0,
        help="side of square tiles, for frames that do not fit into memory",
    )
    parser.add_argument(
        "--overlap",
        metavar="PIXELS",
        type=command.at_least(0),
        help="of tiles; default what makes them exact, where the network allows it",
    )
    parser.add_argument(
        "--seed", metavar="N", type=command.at_least(0), help="samples the posterior; default its mean"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=command.at_least(1),
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
    chosen = parser.parse_args(arguments)
    return command.run(lambda: _command(chosen), "stopped; the same command goes on")


def _command(chosen: argparse.Namespace) -> int:
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of how it was opened
    with files.tasks(chosen.action, chosen.source, chosen.target, chosen.shard) as tasks:
        command.keep_compiled()
        codec = vaejax.load(
            chosen.model, step=chosen.step, dtype=chosen.compute, tile=chosen.tile, overlap=chosen.overlap
        )
        codec.stream_encoder()  # says at once what no file can do without
        unfinished.sweep(task.target for task in tasks)
        job = _Job(chosen.action, codec, Settings(chosen.dtype, chosen.seed, chosen.crf), chosen.workers)
        job.run(tasks)
    outcomes = (DONE[chosen.action], "already there", "refused")
    told = [f"{job.counts[o]} {o}" for o in outcomes if job.counts[o] or o == outcomes[0]]
    print(", ".join(told), file=sys.stderr if chosen.target == files.PIPE else sys.stdout)
    return command.INPUT_ERROR if job.counts["refused"] else 0


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
    sys.exit(main())
