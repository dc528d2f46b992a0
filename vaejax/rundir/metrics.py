"""The metric writers of a run: metrics.jsonl and TensorBoard.

Scalar keys are `split/bucket/name`. The split is 'train' or 'eval'. The bucket is the name of a bucket,
'mean' for the mean over buckets, or 'all' for a number of the whole update. Examples:
`train/image_64x64/nll`, `train/all/grad_norm`.

The methods are named as in `clu.metric_writers.MetricWriter`, which would require TensorFlow.
"""

import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vaejax import files


class JsonlWriter:
    """Writes scalars as JSON lines: {"step", "split", "bucket", name: value, ...}.

    There is one line per step, split and bucket. It may also hold lists of sentences. Every line is strict
    JSON: non-finite values are the strings "NaN", "Infinity" and "-Infinity", which `float(value)` in Python
    and `Number(value)` in JavaScript read.

    Args:
      path: the file; its folder is created.
      resume_step: the step to resume from. Lines of later steps are dropped, because the run will write them
        again, and so are incomplete lines. 0 starts an empty file.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int = 0):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.sweep([path])
        with files.atomic_file(path) as file:
            if resume_step and path.exists():
                with open(path, "rb") as earlier:
                    file.writelines(line for line in earlier if _step(line) <= resume_step)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - close() closes it

    def write_scalars(
        self,
        step: int,
        scalars: Mapping[str, Any],
        sentences: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Writes numbers, which are kept even if the process is killed afterwards.

        Args:
          step: number of updates done.
          scalars: numbers with keys 'split/bucket/name'.
          sentences: lists of sentences with such keys, written to the same lines.

        Raises:
          ValueError: for a key of another form, or a name that the line itself uses, such as 'step'.
        """
        lines: dict[tuple[str, str], dict[str, Any]] = {}
        for key, value in (*scalars.items(), *(sentences or {}).items()):
            split, bucket, name = _parts(key)
            line = lines.setdefault((split, bucket), {"step": int(step), "split": split, "bucket": bucket})
            if name in line:
                raise ValueError(f"scalar {key!r}: the name {name!r} is reserved; accepted: another name")
            line[name] = list(value) if sentences and key in sentences else files.strict(_number(value))
        self._file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines.values())
        self._file.flush()

    def flush(self) -> None:
        """Writes buffered lines to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        self._file.close()


class TensorboardWriter:
    """Writes TensorBoard event files, without TensorFlow.

    tensorboardX writes in a thread. A full disk ends the thread, and a bounded queue would then block the
    run. The queue is therefore unbounded, and nothing is queued once the thread is dead. A message on stderr
    reports this once; metrics.jsonl has the same numbers.

    Args:
      directory: folder of the event files.
      resume_step: the step to resume from; TensorBoard hides later steps of the earlier run. 0 hides all of
        its steps.
    """

    def __init__(self, directory: str | os.PathLike, resume_step: int = 0):
        self._directory, self._files, self._gave_up = str(directory), 0, False
        self._open(resume_step + 1 if resume_step else 0)  # TensorBoard hides steps from this one on

    def _open(self, purge_step: int | None) -> None:
        from tensorboardX import SummaryWriter

        self._files += 1
        suffix = f".{self._files}" if self._files > 1 else ""  # names only differ by the second
        self._writer = SummaryWriter(
            self._directory, purge_step=purge_step, max_queue=0, filename_suffix=suffix
        )
        file_writer: Any = self._writer.file_writer
        events = file_writer.event_writer
        events._event_queue.cancel_join_thread()  # otherwise the process waits for the queue when it exits
        self._thread = events._worker

    def write_scalars(
        self,
        step: int,
        scalars: Mapping[str, Any],
        sentences: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Writes numbers, {'split/bucket/name': number}; leaves out sentences."""
        for key, value in scalars.items():
            if self._is_alive():
                self._writer.add_scalar(key, _number(value), step)

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images, {name: array (H, W, C) or (N, H, W, C)}, uint8 or floats in [0, 1]."""
        for key, array in images.items():
            array = np.asarray(array)
            for i, image in enumerate(array if array.ndim == 4 else [array]):
                tag = f"{key}/{i}" if array.ndim == 4 and len(array) > 1 else key
                if self._is_alive():
                    self._writer.add_image(tag, image, step, dataformats="HWC")

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration as a text table; tensorboardX's HParams need a folder of their own."""
        rows = [f"| {key} | {value} |" for key, value in sorted(hparams.items())]
        if self._is_alive():
            self._writer.add_text("hparams", "\n".join(["| key | value |", "|---|---|", *rows]), 0)

    def flush(self) -> None:
        """Waits until everything is written, unless the writing thread is dead."""
        self._attempt(self._writer.flush)

    def roll(self, size: int) -> None:
        """Continues in a new file once this one has over `size` bytes, because a bucket replaces it whole."""
        newest = max(Path(self._directory).iterdir(), key=lambda path: path.stat().st_mtime)
        if newest.stat().st_size > size and self._is_alive():
            self.close()
            self._open(None)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._attempt(self._writer.close)

    def _attempt(self, call: Callable[[], None]) -> None:
        """Calls it unless the writing thread is dead; gives up if the disk is full."""
        if self._is_alive():
            try:
                call()
            except OSError:
                self._give_up()

    def _is_alive(self) -> bool:
        if not self._gave_up and not self._thread.is_alive():
            self._give_up()
        return not self._gave_up

    def _give_up(self) -> None:
        self._gave_up = True
        print(
            f"{self._writer.logdir}: writing failed, is the disk full? TensorBoard gets no more data, but"
            " metrics.jsonl does",
            file=sys.stderr,
        )


def _number(value: Any) -> int | float:
    """A Python number; float32 0.1 becomes 0.1, not 0.10000000149, and reads back as the same float32."""
    value = np.asarray(value).reshape(())[()]
    return int(value) if value.dtype.kind in "biu" else float(str(value))


def _parts(key: str) -> tuple[str, str, str]:
    split, *rest = key.split("/", 2)
    if len(rest) != 2 or split not in ("train", "eval") or not all(rest):
        raise ValueError(f"scalar {key!r}; accepted: train/BUCKET/NAME or eval/BUCKET/NAME")
    return split, rest[0], rest[1]


def _step(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinity if the line is incomplete."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
