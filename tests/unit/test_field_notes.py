"""The verdicts of the field notes follow from paired t-intervals."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.field_notes import page
from benchmarks.field_notes.lab import Lab
from benchmarks.field_notes.lesson import Lesson, Outcome
from benchmarks.field_notes.verdict import CONTRADICTED, OPEN, SHOWN, Difference, overall, paired


def test_the_interval_is_that_of_a_paired_t_test():
    a, b = np.random.default_rng(0).normal(size=(2, 5))
    found = paired("a minus b", "dB", a, b, expected=1)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose([found.mean - found.half_width, found.mean + found.half_width], [low, high])
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 4) * found.spread / np.sqrt(5))


@pytest.mark.parametrize(
    ("values", "expected", "margin", "verdict"),
    [
        ([1.0, 1.1, 0.9], +1, 0.0, SHOWN),
        ([1.0, 1.1, 0.9], -1, 0.0, CONTRADICTED),
        ([1.0, -1.1, 0.9], +1, 0.0, OPEN),
        ([0.01, -0.01, 0.0], 0, 0.1, SHOWN),
        ([1.0, 1.1, 0.9], 0, 0.1, CONTRADICTED),
        ([0.3, -0.3, 0.0], 0, 0.1, OPEN),
        ([5.0], +1, 0.0, OPEN),  # one seed shows nothing
    ],
)
def test_the_interval_decides(values, expected, margin, verdict):
    assert paired("x", "dB", values, [0.0] * len(values), expected, margin).verdict == verdict


def test_a_lesson_is_as_good_as_its_worst_difference():
    good, bad, unclear = (
        paired("x", "", v, [0.0] * 3, 1) for v in ([1, 1.1, 0.9], [-1, -1.1, -0.9], [1, -1, 0])
    )
    assert overall([good, good]) == SHOWN
    assert overall([good, unclear]) == OPEN
    assert overall([unclear, bad]) == CONTRADICTED


def test_work_that_is_done_is_not_repeated_unless_it_is_asked_for_otherwise(tmp_path):
    calls = []

    def work():
        calls.append(1)
        return {"score": len(calls)}

    for seeds in ((0, 1), (0, 1), (0, 1, 2)):  # a tuple, which a JSON file keeps as a list
        found = Lab(tmp_path, "cpu", "").compute("scores", {"seeds": seeds}, work)
    assert found == {"score": 2} and len(calls) == 2


def test_a_sentence_has_the_effect_in_units_of_the_spread_between_seeds():
    found = Difference("PSNR", "dB", (1.0, 2.0, 3.0), 1)  # Student's t: 4.303 / sqrt(3) = 2.48
    assert found.sentence() == (
        "PSNR: +2.00 ± 2.48 dB over 3 seeds, 2.0 times their spread: not shown at this scale"
    )
    assert "spread" not in Difference("PSNR", "dB", (1.0,), 1).sentence()


def test_a_document_keeps_the_lessons_of_earlier_runs():
    def done(title, values, seconds=60.0):
        outcome = Outcome([Difference("PSNR", "dB", values, 1)], ["seed", "PSNR"], [["0", "20"]], print)
        return Lesson(title.lower(), title, "claim", "setup", print), outcome, seconds

    def text(*lessons, earlier=""):
        return page.markdown(lessons, {"Date": "today"}, "images", ["One", "Two"], earlier)

    one, two = done("One", (1.0, 1.1, 0.9)), done("Two", (1.0, -1.0, 0.9), 120.0)
    assert text(two, earlier=text(one)) == text(one, earlier=text(two)) == text(one, two)
    assert "| all | | 3 |" in text(one, two)
    newer = done("One", (-1.0, -1.1, -0.9))
    assert text(newer, earlier=text(one, two)) == text(newer, two)
