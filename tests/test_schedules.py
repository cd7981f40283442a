"""Schedules are plain functions of the step."""

from __future__ import annotations

import math

import pytest

from tlprune.schedules import constant, exponential, join, linear, logarithmic

SHAPES = [linear, logarithmic, exponential]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("start", "end"), [(0.01, 0.98), (0.9, 0.1), (0.5, 0.5)])
def test_a_rise_goes_from_start_to_end_and_stays(shape: object, start: float, end: float) -> None:
    values = [shape(start, end, steps=20)(step) for step in range(-3, 40)]
    assert values[:4] == pytest.approx([start] * 4)
    assert values[23:] == pytest.approx([end] * len(values[23:]))
    assert values == pytest.approx(sorted(values, reverse=start > end))


def test_linear_steps_are_equal_and_logarithmic_factors_are() -> None:
    straight, shrinking = linear(0.1, 0.9, steps=8), logarithmic(0.0, 0.99, steps=8)
    rises = [straight(step + 1) - straight(step) for step in range(8)]
    factors = [(1 - shrinking(step + 1)) / (1 - shrinking(step)) for step in range(8)]
    assert rises == pytest.approx([0.1] * 8)
    assert factors == pytest.approx([0.01 ** (1 / 8)] * 8)


def test_exponential_factors_are_equal() -> None:
    falling = exponential(2.0, 0.02, steps=4)
    assert [falling(step + 1) / falling(step) for step in range(4)] == pytest.approx([0.01**0.25] * 4)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, -1.0)])
def test_an_exponential_from_or_to_nothing_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="needs values above 0"):
        exponential(start, end, steps=3)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_rise_of_no_steps_is_at_its_end(shape: object) -> None:
    assert shape(0.1, 0.5, steps=0)(0) == pytest.approx(0.5)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 0.5), (0.0, 1.5)])
def test_a_logarithm_of_nothing_is_refused(start: float, end: float) -> None:
    with pytest.raises(ValueError, match="needs values below 1"):
        logarithmic(start, end, steps=3)


def test_joined_schedules_count_from_their_own_start() -> None:
    both = join(constant(2.0), linear(0, 1, steps=4), at=3)
    assert [both(step) for step in range(8)] == [2.0, 2.0, 2.0, 0.0, 0.25, 0.5, 0.75, 1.0]
    assert math.isclose(join(linear(0, 1, steps=2), constant(1.0), at=0)(0), 1.0)
