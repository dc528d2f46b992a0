"""Charts draw what their ticks say."""

import re

import numpy as np
import pytest

from vaejax.evaluate import page
from vaejax.evaluate.page import Series


def ticks_of(text):
    """(label, y) of the ticks of the y axis."""
    found = re.findall(r"y=([\d.]+) text-anchor=end>([-\d.e+]+)<", text)
    return np.array([(float(label), float(y)) for y, label in found])


def dots_of(text):
    return [tuple(map(float, pair)) for pair in re.findall(r"<circle cx=([\d.]+) cy=([\d.]+)", text)]


@pytest.mark.parametrize(("low", "high"), [(29.3, 31.7), (0, 1e-3), (-1234, 5000), (30, 30)])
def test_a_chart_draws_points_where_its_ticks_say(low, high):
    """Places of points are linear in what the axis' ticks are, read back from the SVG."""
    points = list(zip(range(5), np.linspace(low, high, 5), strict=True))
    text = page.chart([Series("a", points), Series("none", [(0, float("inf"))])], "x", "y")
    ticks = ticks_of(text)
    slope, offset = np.polyfit(*ticks.T, 1)
    drawn = dots_of(text)
    assert len(drawn) == 5  # infinite ones are left out
    np.testing.assert_allclose(
        [y - 4 for _, y in drawn], [slope * v + offset - 8 for _, v in points], atol=0.3
    )
    assert (np.diff([x for x, _ in drawn]) > 0).all() and all(52 <= x <= 460 for x, _ in drawn)
    assert len(ticks) >= 3 and "none (infinite)" in text


@pytest.mark.parametrize("values", [(0.003, 0.02, 1.5, 0.4), (2e-9, 5e3), (3, 100)])
def test_a_logarithmic_axis_has_equal_steps_for_equal_factors(values):
    text = page.chart([Series("a", list(enumerate(values)))], "x", "y", log=True)
    labels, places = ticks_of(text).T
    slope, offset = np.polyfit(np.log10(labels), places - 4, 1)
    np.testing.assert_allclose([y for _, y in dots_of(text)], slope * np.log10(values) + offset, atol=0.3)
    assert len(labels) >= 3 and labels.min() <= min(values) and labels.max() >= max(values)


def test_an_axis_is_logarithmic_only_for_values_of_different_magnitude():
    series = [Series("a", [(0, 1.0), (1, 1.5), (2, 2.0)])]
    assert page.chart(series, "x", "y", log=True) == page.chart(series, "x", "y")


def test_a_curve_is_interrupted_at_a_value_that_is_not_finite():
    values = [1, 2, float("nan"), 3, 4, float("nan"), 5]
    text = page.chart([Series("a", list(enumerate(values)))], "x", "y")
    lines = re.findall(r"<polyline points='([^']*)'", text)
    assert [len(line.split()) for line in lines] == [2, 2] and len(dots_of(text)) == 5


def test_a_dashed_curve_has_no_dots_and_says_so_in_the_legend():
    text = page.chart([Series("linear codec", [(0, 1), (1, 1)], dashed=True)], "x", "y")
    assert "stroke-dasharray" in text and not dots_of(text) and "- -</span> linear codec" in text


def test_a_chart_covers_the_places_that_it_is_given():
    text = page.chart([Series("a", [(40, 1.0)])], "x", "y", along=(0, 100))
    labels = [float(label) for label in re.findall(r"text-anchor=middle>([-\d.e+]+)<", text)]
    assert min(labels) == 0 and max(labels) == 100


def test_a_chart_of_nothing_is_left_out():
    assert page.chart([Series("a", [])], "x", "y") == ""
