"""What a run leaves for people to read: metrics.jsonl and TensorBoard; panels and the console beside them.

Scalar keys are `split/bucket/name`: split 'train' or 'eval', bucket a bucket's name, or 'all' for a number
that belongs to no bucket. `train/image_64x64/nll`, `train/all/grad_norm`.

The writers have the method names of `clu.metric_writers.MetricWriter`, whose own package needs TensorFlow.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vaejax.rundir.console import Progress, parameter_overview
from vaejax.rundir.panels import frame_strip, write_panels, write_picture

__all__ = ["JsonlWriter", "MultiWriter", "Progress", "TensorboardWriter", "Writer"]
__all__ += ["parameter_overview", "write_panels", "write_picture", "writers"]


class Writer:
    """The interface of a metric writer; itself writes nothing."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers, keyed `split/bucket/name`."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Writes images (N, H, W, C) or (H, W, C), uint8, or float in [0, 1]."""

    def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
        """Writes videos (N, T, H, W, C) or (T, H, W, C), uint8, or float in [0, 1]."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts in Markdown."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the configuration, flat."""

    def flush(self) -> None:
        """Hands everything written so far to the disk."""

    def close(self) -> None:
        """Flushes and closes; the writer is not used again."""


class MultiWriter(Writer):
    """Writes to several writers; with none it is silent."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)

    def write_scalars(self, step, scalars):
        """See `Writer`."""
        scalars = {key: _number(value) for key, value in scalars.items()}  # one transfer from the device
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step, images):
        """See `Writer`."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_videos(self, step, videos):
        """See `Writer`."""
        for writer in self._writers:
            writer.write_videos(step, videos)

    def write_texts(self, step, texts):
        """See `Writer`."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams):
        """See `Writer`."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self):
        """See `Writer`."""
        for writer in self._writers:
            writer.flush()

    def close(self):
        """See `Writer`."""
        for writer in self._writers:
            writer.close()


class JsonlWriter(Writer):
    """Scalars as JSON lines: {"step", "split", "bucket", name: value, ...}, one per step, split and bucket.

    Every line is strict JSON. JSON has no NaN, so non-finite values are the strings "NaN", "Infinity" and
    "-Infinity" (as in protobuf's JSON): `float(value)` in Python and `Number(value)` in JavaScript read
    finite and non-finite values alike.

    Args:
      path: the file; its folder is made.
      resume_step: the step the run goes on from. Lines of later steps are dropped, for the run will write
        them again, and so is a line torn by a kill. 0 starts anew with an empty file.
    """

    def __init__(self, path: str | os.PathLike, resume_step: int = 0):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        rewritten = path.with_name(path.name + ".tmp")
        with open(rewritten, "wb") as file:  # replaced whole: a kill here loses nothing
            if resume_step and path.exists():
                with open(path, "rb") as old:
                    file.writelines(line for line in old if _step(line) <= resume_step)
            file.flush()
            os.fsync(file.fileno())
        os.replace(rewritten, path)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write_scalars(self, step, scalars):
        """See `Writer`. Raises ValueError for a key that is not `split/bucket/name`."""
        lines = {}
        for key, value in scalars.items():
            split, bucket, name = _parts(key)
            line = lines.setdefault((split, bucket), {"step": int(step), "split": split, "bucket": bucket})
            if name in line:
                raise ValueError(f"scalar {key!r}: the name {name!r} is taken; choose another")
            value = _number(value)
            line[name] = value if math.isfinite(value) else _NON_FINITE[str(value)]
        self._file.writelines(json.dumps(line, allow_nan=False) + "\n" for line in lines.values())
        self._file.flush()  # what is written survives a kill of this process

    def flush(self):
        """See `Writer`."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self):
        """See `Writer`."""
        self.flush()
        self._file.close()


class TensorboardWriter(Writer):
    """TensorBoard event files, written without TensorFlow. A video is written as a strip of its frames.

    tensorboardX writes in a thread, which a full disk ends; whoever gives it more would wait for ever. So its
    queue has no limit, and after that it gets no more, which stderr tells once: metrics.jsonl has the same.

    Args:
      directory: where the event files go.
      resume_step: the step the run goes on from; TensorBoard hides what was written for later steps. 0
        hides everything that was there.
    """

    def __init__(self, directory: str | os.PathLike, resume_step: int = 0):
        from tensorboardX import SummaryWriter

        # TensorBoard hides steps >= purge_step.
        purge_step = resume_step + 1 if resume_step else 0
        self._writer = SummaryWriter(str(directory), purge_step=purge_step, max_queue=0)
        events = self._writer.file_writer.event_writer
        events._event_queue.cancel_join_thread()  # else the process waits for it at its end
        self._thread, self._told = events._worker, False

    def write_scalars(self, step, scalars):
        """See `Writer`."""
        for key, value in scalars.items():
            if self._writes():
                self._writer.add_scalar(key, _number(value), step)

    def write_images(self, step, images):
        """See `Writer`."""
        for key, array in images.items():
            array = np.asarray(array)
            for i, image in enumerate(array if array.ndim == 4 else [array]):
                tag = f"{key}/{i}" if array.ndim == 4 and len(array) > 1 else key
                if self._writes():
                    self._writer.add_image(tag, image, step, dataformats="HWC")

    def write_videos(self, step, videos):
        """See `Writer`."""
        self.write_images(step, {key: frame_strip(np.asarray(video)) for key, video in videos.items()})

    def write_texts(self, step, texts):
        """See `Writer`."""
        for key, text in texts.items():
            if self._writes():
                self._writer.add_text(key, text, step)

    def write_hparams(self, hparams):
        """See `Writer`. A table of text: TensorBoard's own hyperparameter view wants one run per folder."""
        rows = [f"| {key} | {value} |" for key, value in sorted(hparams.items())]
        self.write_texts(0, {"hparams": "\n".join(["| key | value |", "|---|---|", *rows])})

    def flush(self):
        """See `Writer`."""
        if self._writes():
            try:
                self._writer.flush()
            except OSError:
                self._give_up()

    def close(self):
        """See `Writer`."""
        self.flush()
        if self._writes():
            self._writer.close()

    def _writes(self) -> bool:
        if not self._told and not self._thread.is_alive():
            self._give_up()
        return not self._told

    def _give_up(self) -> None:
        self._told = True
        print(f"{self._writer.logdir}: cannot be written any more, is the disk full?", file=sys.stderr)


def writers(workdir: str | os.PathLike, resume_step: int = 0, is_main: bool = True) -> MultiWriter:
    """The writers of a run: DIR/metrics.jsonl and DIR/tensorboard; silent on processes that are not main."""
    if not is_main:
        return MultiWriter(())
    directory = Path(workdir)
    return MultiWriter(
        (
            JsonlWriter(directory / "metrics.jsonl", resume_step),
            TensorboardWriter(directory / "tensorboard", resume_step),
        )
    )


_NON_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _number(value) -> int | float:
    """A Python number; float32 0.1 becomes 0.1 and not 0.10000000149, and reads back as the same float32."""
    value = np.asarray(value).reshape(())[()]
    return int(value) if value.dtype.kind in "biu" else float(str(value))


def _parts(key: str) -> tuple[str, str, str]:
    parts = key.split("/", 2)
    if len(parts) != 3 or parts[0] not in ("train", "eval") or not all(parts):
        raise ValueError(f"scalar {key!r}: expected train/BUCKET/NAME or eval/BUCKET/NAME")
    return tuple(parts)


def _step(line: bytes) -> float:
    """The step of a line of metrics.jsonl; infinite for one that is torn."""
    try:
        return json.loads(line)["step"] if line.endswith(b"\n") else math.inf
    except (ValueError, TypeError, KeyError):
        return math.inf
