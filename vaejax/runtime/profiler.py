"""XProf traces of chosen updates: DIR/profile, for TensorBoard's profile plugin or `xprof --logdir`."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import jax


class Profile:
    """Traces `count` updates from `first` on, counted from 0.

    Args:
      directory: where traces go.
      updates: (first, count); a count of 0 traces nothing.
      is_main: other processes only name their updates.
    """

    def __init__(self, directory: str | os.PathLike, updates: Sequence[int], is_main: bool = True):
        self._directory, (first, count) = os.fspath(directory), updates
        self._steps = range(first, first + count if is_main else first)
        self._under_way = False

    @contextlib.contextmanager
    def update(self, step: int) -> Iterator[None]:
        """Around what the host does for one update."""
        if step in self._steps and not self._under_way:
            jax.profiler.start_trace(self._directory)
            self._under_way = True
        with jax.profiler.StepTraceAnnotation("update", step_num=step):
            yield

    def done(self, step: int, results) -> None:
        """Ends the trace after its last update, once the devices have `results`."""
        if self._under_way and step + 1 >= self._steps.stop:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Writes a trace that is under way."""
        if self._under_way:
            self._under_way = False
            jax.profiler.stop_trace()
