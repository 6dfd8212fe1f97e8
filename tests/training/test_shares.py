"""Shares follow speed: the best split there is, a still one where little is to gain, and experts off stragglers."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.site.controller import WorkerSlot
from runtime.training.shares import (
    GAIN,
    SEEN,
    WINDOW,
    Pace,
    Speeds,
    range_of,
    reshare,
    spare_stragglers,
    split,
    takes,
)
from tests.training.test_generation import EXPERTS, divided

SPEEDS = st.lists(st.floats(0.1, 4), min_size=1, max_size=4)


@given(st.integers(0, 8), SPEEDS)
def test_no_split_is_better(tasks: int, speeds: list[float]) -> None:
    found = split(tasks, speeds)
    assert sum(found) == tasks
    every = itertools.product(range(tasks + 1), repeat=len(speeds))
    best = min(takes(counts, speeds) for counts in every if sum(counts) == tasks)
    assert takes(found, speeds) == pytest.approx(best)


@given(st.integers(1, 300), st.integers(1, 60))
def test_equal_workers_get_equal_shares_that_cover_everything_in_order(tasks: int, width: int) -> None:
    counts = split(tasks, [1.0] * width)
    assert max(counts) - min(counts) <= 1
    assert [task for rank in range(width) for task in range_of(counts, rank)] == list(range(tasks))


@pytest.mark.parametrize("width", range(2, 17))
def test_with_eight_grains_a_worker_one_at_half_speed_costs_a_tenth_at_most(width: int) -> None:
    speeds = [1.0] * (width - 1) + [0.5]
    ideal = 8 * width / sum(speeds)
    assert ideal / takes(split(8 * width, speeds), speeds) > 0.9


@given(st.integers(1, 40), SPEEDS)
def test_a_split_changes_only_for_a_gain_and_then_stays(tasks: int, speeds: list[float]) -> None:
    even = split(tasks, [1.0] * len(speeds))
    found = reshare(even, speeds)
    assert found == even or GAIN * takes(found, speeds) <= takes(even, speeds)
    assert reshare(found, speeds) == found


def test_speeds_are_medians_of_a_window_and_one_without_work_keeps_its_own() -> None:
    pace = Pace([1.0, 1.0, 0.3])
    for step in range(WINDOW):
        hiccup = 9.0 if step == 2 else 1.0
        is_over = pace.add([8.0, 8.0, 0.0], [hiccup, 2.0, 0.0])
        assert is_over == (step == WINDOW - 1)
    assert pace.speeds == (1.0, 0.5, 0.3)
    assert not pace.add([1.0] * 3, [1.0] * 3)


def test_a_straggler_is_one_that_is_slow_in_most_of_several_windows() -> None:
    heard = Speeds()
    for _ in range(SEEN - 1):
        heard.hear({"a": 1.0, "b": 0.5})
        assert heard.stragglers == {}
    assert heard.hear({"a": 1.0, "b": 0.4}) == {"b": 0.5}
    assert heard.stragglers == {"b": 0.5}
    assert heard.hear({"a": 1.0, "b": 0.9}) == {}, "it was told once"
    assert heard.stragglers == {"b": 0.5}
    assert heard.usual == {"a": 1.0, "b": 0.5}
    heard.hear({"a": 1.0, "b": 0.9})
    assert heard.stragglers == {}
    assert heard.usual == {"a": 1.0, "b": 0.9}
    heard.hear({"a": 1.0, "c": 0.4})  # other workers: what b was does not count any more
    assert heard.stragglers == {}


@given(divided(), st.data())
def test_experts_leave_stragglers_only_and_no_layer_gets_slower(
    slots: tuple[WorkerSlot, ...], data: st.DataObject
) -> None:
    names = [slot.worker for slot in slots]
    slow = data.draw(st.dictionaries(st.sampled_from(names), st.floats(0.05, 0.7)))
    after = spare_stragglers(slots, EXPERTS, slow)
    assert sorted(key for slot in after for key in slot.experts) == EXPERTS

    def ends(some: tuple[WorkerSlot, ...], layer: int) -> list[float]:
        return [sum(key[0] == layer for key in s.experts) / slow.get(s.worker, 1.0) for s in some]

    for before, now in zip(slots, after, strict=True):
        assert before.worker == now.worker
        if before.worker not in slow:
            assert set(before.experts) <= set(now.experts)
    for layer in (0, 1):
        assert max(ends(after, layer)) <= max(ends(slots, layer))
    assert spare_stragglers(after, EXPERTS, slow) == after
    if not slow:
        assert after == slots


def test_one_of_two_at_half_speed_keeps_a_third_of_the_experts() -> None:
    slots = tuple(
        WorkerSlot(w, "trainer", (w, 1), (), tuple((0, e) for e in range(i, 12, 2))) for i, w in enumerate("ab")
    )
    assert [len(slot.experts) for slot in spare_stragglers(slots, [(0, e) for e in range(12)], {"b": 0.5})] == [8, 4]
