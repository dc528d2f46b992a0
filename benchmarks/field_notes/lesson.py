"""What a lesson consists of, and what it leaves for the page."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.field_notes import verdict
from benchmarks.field_notes.lab import Lab
from benchmarks.field_notes.verdict import Difference


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a lesson.

    Attributes:
      differences: what decides the verdict.
      header: head of the table.
      rows: its rows.
      draw: draws the figure on a Matplotlib figure.
      remarks: sentences that the verdict leaves out, each from the numbers.
    """

    differences: Sequence[Difference]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    draw: Callable[[Any], None]
    remarks: Sequence[str] = ()

    @property
    def verdict(self) -> str:
        """The verdict of the lesson."""
        return verdict.overall(self.differences)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """A lesson.

    Attributes:
      name: its name on the command line.
      title: its title.
      claim: what the notes say, in one or two sentences.
      setup: what is trained and compared, in one or two sentences.
      run: trains and compares.
    """

    name: str
    title: str
    claim: str
    setup: str
    run: Callable[[Lab], Outcome]
