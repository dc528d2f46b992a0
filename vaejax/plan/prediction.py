"""A roofline model: predicts the memory, time and throughput of an update from its programs' costs."""

import dataclasses
from collections.abc import Mapping, Sequence

from vaejax.data.bucket import Bucket
from vaejax.plan.cost import Cost
from vaejax.runtime.chips import Chip


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The memory that an update needs on every chip, and the time that it takes.

    XLA's own time estimate is useless for large programs: it comes out as a negative number. So time is
    predicted from counted work: the longer of computation at peak FLOP/s and memory traffic at full
    bandwidth, plus the time of collectives. Collectives are assumed to overlap with nothing and to use the
    links of one dimension of the slice. The FLOPs of the whole program are divided evenly among the chips,
    so work that several chips repeat counts only once. A real run is slower, because no kernel reaches the
    peak.

    Attributes:
      buckets: buckets of the run.
      costs: costs of each bucket's gradient program, keyed by bucket name, and of the optimizer step, keyed
        'update'.
      parameters: bytes per chip of the autoencoder and the discriminators.
      state: bytes per chip of parameters, EMA, optimizer states, discriminators, accumulated gradients and
        the perceptual network.
      chips: number of chips.
      chip: data sheet of one chip; None if the chip is unknown.
      shape: chips along each dimension of the slice, or (nodes, GPUs per node).
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
          'compute', 'memory' and 'links' (communication between chips), as if each ran alone, and 'total',
          which is the longer of 'compute' and 'memory', plus 'links'.
        """
        cost, chip = self.costs[name], self._known_chip
        parts = {
            "compute": cost.flops / self.chips / chip.flops,
            "memory": cost.memory_traffic / chip.bandwidth,
            "links": cost.sent / chip.link(self.shape),
        }
        return parts | {"total": max(parts["compute"], parts["memory"]) + parts["links"]}

    @property
    def update_seconds(self) -> float:
        """Predicted seconds per update, averaged; a bucket takes part in one of `every` updates."""
        gradients = sum(self.seconds(b.name)["total"] / b.every for b in self.buckets)
        return gradients + self.seconds("update")["total"]

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
        return sum(self.costs[b.name].sent / b.every for b in self.buckets) + self.costs["update"].sent

    @property
    def _known_chip(self) -> Chip:
        if self.chip is None:
            raise ValueError("times are predicted only for the chips listed in vaejax.runtime.chips")
        return self.chip
