"""What `bench.rescale` reads off a job's steps."""

from __future__ import annotations

import pytest

from bench.rescale_steps import STEPS_AFTER, Step, cost


def steps(first: int, count: int, from_s: float, width: int) -> list[Step]:
    """One every 0.1 s."""
    return [Step(first + i, from_s + 0.1 * (i + 1), width) for i in range(count)]


def test_a_stall_is_the_gap_at_the_change_without_what_a_step_takes() -> None:
    before, after = steps(1, 10, 0.0, 2), steps(9, 8, 2.9, 3)
    found = cost(before + after, 0.5, 3)
    assert found is not None
    assert found.stall_s == pytest.approx(1.9)
    assert found.recomputed == 2
    assert found.asked_s == pytest.approx(2.5)


def test_it_waits_for_enough_steps_and_overlooks_earlier_changes() -> None:
    before, after = steps(1, 10, 0.0, 2), steps(11, STEPS_AFTER, 1.0, 3)
    assert cost(before + after, 0.0, 3) is None
    after = steps(11, STEPS_AFTER + 1, 1.0, 3)
    assert cost(before + after, 0.0, 3) is not None
    assert cost(before + after, 1.2, 3) is None
    assert cost(before + after, 0.0, 2) is None
