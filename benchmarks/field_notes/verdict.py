"""The rule by which numbers become verdicts; it was fixed before any lesson ran.

Runs with the same seed share their samples, their order and their initial parameters. So every comparison is
the mean difference of such pairs, with a 95% interval by Student's t. A lesson that expects an effect is

- shown, if the interval lies on the expected side of 0;
- contradicted, if it lies on the other side;
- not shown at this scale, if it contains 0. Half its width is then the smallest detectable effect.

A lesson that expects no effect is shown if the interval lies within a margin around 0, contradicted if it
lies outside of it, and otherwise not shown.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

SHOWN, CONTRADICTED, OPEN = "shown", "contradicted", "not shown at this scale"


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean paired difference.

    Attributes:
      what: the difference in words, such as "PSNR of clips, sum minus mean".
      unit: its unit, such as "dB"; '' for a share.
      values: the difference for each seed.
      expected: +1 or -1, the sign that the notes lead to expect; 0 if they expect no effect.
      margin: size of a difference that counts as none, if `expected` is 0.
    """

    what: str
    unit: str
    values: tuple[float, ...]
    expected: int
    margin: float = 0.0

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(self.values))

    @property
    def half_width(self) -> float:
        """Half the width of the 95% interval, the smallest effect that could have been detected."""
        n = len(self.values)
        if n < 2:
            return float("inf")
        return float(stats.t.ppf(0.975, n - 1) * np.std(self.values, ddof=1) / np.sqrt(n))

    @property
    def spread(self) -> float:
        """The standard deviation over seeds."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")

    @property
    def verdict(self) -> str:
        """SHOWN, CONTRADICTED or OPEN."""
        low, high = self.mean - self.half_width, self.mean + self.half_width
        if self.expected:
            if low * self.expected > 0 and high * self.expected > 0:
                return SHOWN
            return CONTRADICTED if low * self.expected < 0 and high * self.expected < 0 else OPEN
        if -self.margin <= low and high <= self.margin:
            return SHOWN
        return CONTRADICTED if low > self.margin or high < -self.margin else OPEN

    def sentence(self) -> str:
        """The difference with its interval and verdict, in one line."""
        unit = f" {self.unit}" if self.unit else ""
        text = f"{self.what}: {self.mean:+.2f} ± {self.half_width:.2f}{unit} over {len(self.values)} seeds"
        if self.spread > 0:  # not for a single seed, whose spread is NaN
            text += f", {abs(self.mean) / self.spread:.1f} times their spread"
        if not self.expected:
            text += f", none expected (within {self.margin:g}{unit})"
        return f"{text}: {self.verdict}"


def paired(
    what: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    expected: int,
    margin: float = 0.0,
) -> Difference:
    """The difference `ours` - `theirs`, whose values have the seeds in the same order."""
    values = tuple(float(a - b) for a, b in zip(ours, theirs, strict=True))
    return Difference(what, unit, values, expected, margin)


def overall(differences: Sequence[Difference]) -> str:
    """The verdict of a lesson: the worst of its differences, where OPEN lies between the others."""
    found = [difference.verdict for difference in differences]
    return CONTRADICTED if CONTRADICTED in found else OPEN if OPEN in found else SHOWN
