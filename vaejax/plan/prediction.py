"""From the costs of programs to memory, time and throughput: a roofline."""

import dataclasses
from collections.abc import Mapping, Sequence

from vaejax.data.bucket import Bucket
from vaejax.plan.cost import Cost
from vaejax.runtime.chips import Chip


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What an update needs on every chip, and how long it takes.

    XLA's own estimate of a program's time is negative for large ones, so time is predicted from what it does:
    the longer of computing at the chip's peak and of moving its memory traffic, and then its collectives, as
    if nothing hid them and each went along one dimension of the slice, by that one's links alone. Chips are
    taken to share the operations evenly: what several of them repeat is not seen. A real run is slower: no
    kernel reaches the peak.

    Attributes:
      buckets: of the run.
      costs: of each bucket's gradients, by name, and of 'update', the optimiser's step.
      parameters: bytes a chip, of the autoencoder and the discriminators.
      state: bytes a chip of parameters, averages, optimisers, discriminators and gathered gradients.
      chips: of the topology.
      chip: their kind; None where no data sheet is known: then there is no time.
      shape: of the slice, chips in each dimension.
    """

    buckets: Sequence[Bucket]
    costs: Mapping[str, Cost]
    parameters: int
    state: int
    chips: int
    chip: Chip | None
    shape: Sequence[int] = ()

    @property
    def code(self) -> int:
        """Bytes a chip of all programs of an update, which stay there together."""
        return sum(cost.code for cost in self.costs.values())

    def work(self, name: str) -> int:
        """Bytes a chip that one program needs beside the state and code: activations above all."""
        cost = self.costs[name]
        if not cost.fits:
            return max(0, cost.temporary - self.state)
        return cost.temporary + cost.output - cost.aliased

    def needed(self, name: str) -> int:
        """Bytes a chip while one program runs, the others' code beside it."""
        return self.state + self.code + self.work(name)

    @property
    def room(self) -> float:
        """Bytes a chip that programs may use."""
        return self.chip.memory if self.chip else float("inf")

    def fits(self, name: str) -> bool:
        """Whether there is room for a program."""
        return self.costs[name].fits and self.needed(name) <= self.room

    @property
    def all_fit(self) -> bool:
        """Whether there is room for every program."""
        return all(map(self.fits, self.costs))

    def seconds(self, name: str) -> dict[str, float]:
        """Of a program: 'compute', 'memory', 'links', and the 'total' predicted."""
        cost = self.costs[name]
        parts = {
            "compute": cost.flops / self.chips / self.chip.flops,
            "memory": cost.memory_traffic / self.chip.bandwidth,
            "links": cost.sent / self.chip.link(self.shape),
        }
        return parts | {"total": max(parts["compute"], parts["memory"]) + parts["links"]}

    @property
    def update_seconds(self) -> float:
        """Of an update, on average over the schedule."""
        gradients = sum(self.seconds(b.name)["total"] / b.every for b in self.buckets)
        return gradients + self.seconds("update")["total"]

    @property
    def samples_per_second(self) -> float:
        """Images and clips together."""
        return sum(b.batch / b.every for b in self.buckets) / self.update_seconds

    @property
    def utilisation(self) -> float:
        """Of the model's operations, recomputation left out, as a share of the peak."""
        flops = sum(self.costs[b.name].model_flops / b.every for b in self.buckets)
        return flops / self.update_seconds / self.chips / self.chip.flops

    @property
    def sent(self) -> float:
        """Bytes that a chip sends to others in an update, on average."""
        return sum(self.costs[b.name].sent / b.every for b in self.buckets) + self.costs["update"].sent
