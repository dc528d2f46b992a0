"""Predicts the memory, time and throughput of an update from its programs' costs."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from vaejax.data.bucket import Bucket
from vaejax.plan.cost import Cost
from vaejax.runtime.chips import Chip


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The memory that an update needs on every chip, and the time that it takes.

    The time of a program is the longer of two estimates, plus the time of collectives. The roofline is the
    longer of computation at peak FLOP/s and memory traffic at full bandwidth. libtpu estimates the cycles of
    every instruction; their sum is usually longer, because it knows the shapes that fill a TPU badly. The
    total that libtpu reports for a large program is useless: it comes out as a negative number. Collectives
    are assumed to overlap with nothing, and to use the links of one dimension of the slice or the network
    between slices or nodes. The FLOPs of the whole program are divided evenly among the chips, so work that
    several chips repeat counts only once. A real run may be slower.

    Attributes:
      buckets: buckets of the run.
      costs: costs of each bucket's gradient program, keyed by bucket name, and of the optimizer step, keyed
        'update'.
      parameters: bytes per chip of the autoencoder and the discriminators.
      state: bytes per chip of parameters, EMA, optimizer states, discriminators, accumulated gradients and
        the perceptual network.
      chips: number of chips.
      chip: data sheet of one chip; None if the chip is unknown.
      shape: chips along each dimension of a slice; number of GPUs of a node.
    """

    buckets: Sequence[Bucket]
    costs: Mapping[str, Cost]
    parameters: int
    state: int
    chips: int
    chip: Chip | None
    shape: Sequence[int] = ()

    @property
    def is_timed(self) -> bool:
        """Whether the predicted times are worth printing; on GPUs they serve only to compare plans."""
        return self.chip is not None and self.chip.is_timed

    @property
    def code(self) -> int:
        """Bytes per chip of the code of all programs, which stay loaded together."""
        return sum(cost.code for cost in self.costs.values())

    def work(self, name: str) -> int:
        """Bytes per chip that one program needs in addition to state and code, mostly activations."""
        cost = self.costs[name]
        if not cost.fits:
            return max(0, cost.temporary - self.state)
        return cost.temporary + cost.output - cost.aliased

    def needed(self, name: str) -> int:
        """Bytes per chip in use while one program runs, including the code of all programs."""
        return self.state + self.code + self.work(name)

    @property
    def room(self) -> float:
        """Bytes per chip that programs may use; infinite if the chip is unknown."""
        return self.chip.memory if self.chip else float("inf")

    def fits(self, name: str) -> bool:
        """Whether a program fits in memory."""
        return self.costs[name].fits and self.needed(name) <= self.room

    @property
    def all_fit(self) -> bool:
        """Whether every program fits in memory."""
        return all(map(self.fits, self.costs))

    def seconds(self, name: str) -> dict[str, float]:
        """Predicted seconds of one program.

        Returns:
          'compute', 'memory' and 'links' (communication between chips), as if each ran alone; 'cycles',
          libtpu's estimate without 'links', 0 if there is none; and 'total', which is the longest of
          'compute', 'memory' and 'cycles', plus 'links'.
        """
        cost, chip = self.costs[name], self._known_chip
        parts = {
            "compute": cost.flops / self.chips / chip.flops,
            "memory": cost.memory_traffic / chip.bandwidth,
            "cycles": cost.cycles / chip.clock,
            "links": (cost.sent - cost.crossing) / chip.link(self.shape) + cost.crossing / chip.network,
        }
        longest = max(parts[name] for name in ("compute", "memory", "cycles"))
        return parts | {"total": longest + parts["links"]}

    @property
    def update_seconds(self) -> float:
        """Predicted seconds per update, averaged; a bucket takes part in one of `every` updates."""
        return self._averaged(lambda name: self.seconds(name)["total"])

    @property
    def roofline_seconds(self) -> float:
        """Seconds per update by the roofline alone, averaged like `update_seconds`."""

        def seconds(name: str) -> float:
            parts = self.seconds(name)
            return max(parts["compute"], parts["memory"]) + parts["links"]

        return self._averaged(seconds)

    @property
    def estimate(self) -> str:
        """The name of the estimate that gives `update_seconds`, the slower one."""
        slower = self.update_seconds > 1.001 * self.roofline_seconds
        return "libtpu's cycle estimates" if slower else "the roofline"

    def _averaged(self, of: Callable[[str], float]) -> float:
        """The sum of a quantity of the programs of an update, averaged over updates."""
        return sum(of(b.name) / b.every for b in self.buckets) + of("update")

    @property
    def samples_per_second(self) -> float:
        """Predicted images and clips per second, over all chips."""
        return sum(b.batch / b.every for b in self.buckets) / self.update_seconds

    @property
    def utilization(self) -> float:
        """Share of the peak FLOP/s that the model's operations use; recomputation does not count."""
        flops = sum(self.costs[b.name].model_flops / b.every for b in self.buckets)
        return flops / self.update_seconds / self.chips / self._known_chip.flops

    @property
    def sent(self) -> float:
        """Bytes that a chip sends to other chips per update, averaged like `update_seconds`."""
        return self._averaged(lambda name: self.costs[name].sent)

    @property
    def _known_chip(self) -> Chip:
        if self.chip is None:
            raise ValueError("times are predicted only for the chips listed in vaejax.runtime.chips")
        return self.chip
