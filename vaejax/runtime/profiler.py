"""XProf traces of chosen updates, for `xprof --logdir` or the profile plugin of TensorBoard."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax


class Profile:
    """Traces a range of updates on process 0; leaving the context ends an open trace.

    Args:
      directory: folder of the traces.
      updates: first update, counted from 0, and number of updates; a number of 0 disables tracing.
    """

    def __init__(self, directory: str | os.PathLike, updates: Sequence[int]):
        self._directory, (first, count) = os.fspath(directory), updates
        # Processes other than 0 only annotate their updates.
        self._steps = range(first, first + count if jax.process_index() == 0 else first)
        self._tracing = False

    @contextlib.contextmanager
    def update(self, step: int) -> Iterator[None]:
        """A context for the host's work on update `step`; starts the trace if `step` is in its range."""
        if step in self._steps and not self._tracing:
            jax.profiler.start_trace(self._directory)
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            yield

    def done(self, step: int, results: Any) -> None:
        """Ends the trace if `step` is its last update, once the devices have computed `results`."""
        if self._tracing and step + 1 >= self._steps.stop:
            jax.block_until_ready(results)
            self._close()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception):
        self._close()

    def _close(self) -> None:
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
