"""Many files through a trained VAE: several at once, and what cannot be done does not stop the rest."""

import collections
import sys
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tqdm import tqdm

from vaejax.codec.codec import Codec
from vaejax.codec.convert import Converter, Settings
from vaejax.codec.latent_file import LatentFile
from vaejax.codec.tasks import DECODE, ENCODE, RECONSTRUCT, Task
from vaejax.errors import InputError, Stopped, one_line

DONE = {ENCODE: "encoded", DECODE: "decoded", RECONSTRUCT: "reconstructed"}


class Job:
    """Does tasks, several files at once, and counts how they went.

    Args:
      action: 'encode', 'decode' or 'reconstruct'.
      codec: by which.
      settings: of files.
      workers: files at once.
      stop: ends the work soon once it is set; the files that are being made are not kept.

    Attributes:
      counts: of tasks by how they ended: one of `DONE`, 'already there' or 'refused'.
    """

    def __init__(self, action: str, codec: Codec, settings: Settings, workers: int, stop: threading.Event):
        self._action, self._codec, self._settings, self._workers = action, codec, settings, workers
        self._converter = Converter(codec, settings, self._progressed, self._tell)
        self._stop, self._lock = stop, threading.Lock()
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
                pool.shutdown(cancel_futures=True)
                self._show()
        for one in work:
            if not one.cancelled() and not isinstance(one.exception(), Stopped):
                one.result()

    def _do(self, task: Task) -> None:
        try:
            self._progressed(0)
            outcome = self._outcome(task)
        except Stopped:
            raise
        except Exception as error:  # one file of a million must not end the others' work
            foreseen = isinstance(error, InputError)
            told = error if foreseen else f"{task.name}: {type(error).__name__}: {one_line(error)}"
            self._tell(f"error: {told}")
            outcome = "refused"
        with self._lock:
            self.counts[outcome] += 1
            self._bar.update()

    def _outcome(self, task: Task) -> str:
        if task.refusal:
            raise InputError(f"{task.name}: {task.refusal}")
        if task.keep and task.target.exists():
            self._check_there(task)
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

    def _check_there(self, task: Task) -> None:
        """InputError if what is there is not what would be made."""
        if self._action == RECONSTRUCT:
            return
        latent = LatentFile(task.target) if self._action == ENCODE else LatentFile(task.source, task.name)
        if latent.facts.model != self._codec.fingerprint:
            raise InputError(f"{latent.name}: {self._codec.another_model(latent.facts.model)}")
        found = _latents_of(latent.dtype, latent.facts.seed)
        wanted = _latents_of(self._settings.dtype, self._settings.seed)
        if self._action == ENCODE and found != wanted:
            raise InputError(
                f"{latent.name}: already there with {found}; accepted: another folder, or the same"
            )

    def _progressed(self, frames: int) -> None:
        if self._stop.is_set():
            raise Stopped
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


def _latents_of(dtype: str, seed: int | None) -> str:
    return f"--dtype={dtype} and {'no --seed' if seed is None else f'--seed={seed}'}"
