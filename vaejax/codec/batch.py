"""Encodes or decodes many files, several at a time; a file that fails does not stop the others."""

import collections
import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tqdm import tqdm

from vaejax.codec import origin
from vaejax.codec.codec import Codec
from vaejax.codec.convert import Converter, Unwritable
from vaejax.codec.origin import Settings
from vaejax.codec.tasks import DECODE, ENCODE, RECONSTRUCT, Task
from vaejax.data.crop import Unavailable
from vaejax.errors import InputError, Stopped, one_line

DONE = {ENCODE: "encoded", DECODE: "decoded", RECONSTRUCT: "reconstructed"}
ALREADY_THERE, REFUSED = "already there", "refused"


def progress_bar(files: int | None) -> tqdm:
    """A progress bar on stderr."""
    return tqdm(total=files, unit="file", file=sys.stderr)


@dataclasses.dataclass
class Outcome:
    """The outcomes of a command's tasks.

    Attributes:
      counts: number of tasks by outcome, which is a value of `DONE`, `ALREADY_THERE` or `REFUSED`.
      refused: the tasks that were `REFUSED`, by name, with the reasons.
      unwritable: number of refused tasks whose target could not be written, so the source may be good.
      unavailable: number of refused tasks whose source could not be read for a reason outside it.
      other_settings: number of refused tasks whose latents another model or other settings encoded.
      incomparable: number of tasks `ALREADY_THERE` whose target is from an earlier version of vaejax, without
        a complete record of its source and settings.
    """

    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    unwritable: int = 0
    unavailable: int = 0
    other_settings: int = 0
    incomparable: int = 0


class BatchConverter:
    """Runs tasks, several at a time, and counts their outcomes.

    Args:
      action: 'encode', 'decode' or 'reconstruct'.
      codec: the model.
      settings: settings of the written files.
      workers: number of files processed at a time.
      stop: event that, once set, ends the work soon; unfinished files are discarded.

    Attributes:
      outcome: the outcome of the tasks so far, since the last `take`.
    """

    def __init__(self, action: str, codec: Codec, settings: Settings, workers: int, stop: threading.Event):
        self._action, self._codec, self._settings, self._workers = action, codec, settings, workers
        self._converter = Converter(codec, settings, self._advance, self._report)
        self._stop, self._lock = stop, threading.Lock()
        self._frames, self._shown = 0, 0.0
        self.outcome = Outcome()

    def run(self, tasks: Sequence[Task], bar: tqdm | None = None) -> None:
        """Runs all tasks; every failure is reported with the name of its file.

        Args:
          tasks: the tasks.
          bar: progress bar of more tasks than these; None shows one of these.
        """
        with contextlib.ExitStack() as stack:
            self._bar = bar if bar is not None else stack.enter_context(progress_bar(len(tasks)))
            pool = stack.enter_context(ThreadPoolExecutor(self._workers))
            work = [pool.submit(self._run_task, task) for task in tasks]
            try:
                wait(work, return_when=FIRST_EXCEPTION)
            finally:
                pool.shutdown(cancel_futures=True)
                self._show_progress()
        if self.outcome.incomparable:
            self._report(
                f"{self.outcome.incomparable} already there from an earlier version of vaejax, without a"
                " complete record of their source and settings; delete them to make them again"
            )
        for each in work:
            if not each.cancelled() and not isinstance(each.exception(), Stopped):
                each.result()

    def take(self) -> Outcome:
        """Returns the outcome of the tasks since the last call."""
        taken, self.outcome = self.outcome, Outcome()
        return taken

    def _run_task(self, task: Task) -> None:
        try:
            self._advance(0)
            outcome = self._convert(task)
        except Stopped:
            raise
        except Exception as error:  # one bad file must not stop the others
            expected = isinstance(error, InputError)
            message = f"{error}" if expected else f"{task.name}: {type(error).__name__}: {one_line(error)}"
            self._report(f"error: {message}")
            outcome = REFUSED
            with self._lock:
                self.outcome.refused[task.name] = message
                self.outcome.unwritable += isinstance(error, Unwritable)
                self.outcome.unavailable += isinstance(error.__cause__ or error, OSError | Unavailable)
                self.outcome.other_settings += isinstance(error, origin.OtherSettings)
        with self._lock:
            self.outcome.counts[outcome] += 1
            self._bar.update()

    def _convert(self, task: Task) -> str:
        """Writes the target of a task, unless it exists and is up to date; returns the outcome."""
        if task.refusal:
            raise InputError(f"{task.name}: {task.refusal}")
        if callable(task.source):
            task = task._replace(source=task.source())
        if task.keep and task.target.exists() and self._is_up_to_date(task):
            return ALREADY_THERE
        try:
            task.target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unwritable(f"{task.target}: {error.strerror}; accepted: a writable folder") from error
        if self._action == ENCODE:
            self._converter.encode(task.source, task.target, task.name, task.kind)
        elif self._action == DECODE:
            self._converter.decode(task.source, task.target, task.name, task.extension)
        else:
            self._converter.reconstruct(task.source, task.target, task.name, task.kind, task.extension)
        return DONE[self._action]

    def _is_up_to_date(self, task: Task) -> bool:
        """Whether the existing target matches the output of the task, as far as its record shows.

        Raises:
          InputError: if vaejax cannot have written the target, the source cannot be read, or the target has
            latents of another model or other settings, which are not replaced.
        """
        codec, settings, size = self._codec, self._settings, None
        if self._action == ENCODE:
            expected = origin.of_latents(codec, settings, task.source, task.name)
        elif self._action == DECODE:
            latents = self._converter.opened(task.source, task.name)
            size = latents.facts.height, latents.facts.width
            identity = origin.identity(latents, task.source, task.name)
            expected = origin.of_frames(codec, settings, latents.facts.kind, identity)
        else:
            identity = origin.of_latents(codec, settings, task.source, task.name)
            expected = origin.of_frames(codec, settings, task.kind, identity)
        found = origin.read(task.target, size)
        if self._action == ENCODE:
            origin.check_encoded(found, expected, str(task.target))
        if changes := origin.changes(found, expected):
            self._report(f"{task.name}: {DONE[self._action]} again, because {', '.join(changes)}")
            return False
        with self._lock:
            self.outcome.incomparable += not found.keys() >= expected.keys()
        return True

    def _advance(self, frames: int) -> None:
        """Counts finished frames; raises Stopped if `stop` is set."""
        if self._stop.is_set():
            raise Stopped
        with self._lock:
            self._frames += frames
            if time.monotonic() - self._shown > 0.2:
                self._show_progress()

    def _show_progress(self) -> None:
        self._shown = time.monotonic()
        self._bar.set_postfix(frames=self._frames)

    def _report(self, line: str) -> None:
        with self._lock:
            tqdm.write(line, file=sys.stderr)
