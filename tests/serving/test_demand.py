"""How many engines a served model asks for."""

from __future__ import annotations

from typing import Any

from protocol.jobspec import ServePart
from runtime.serving.demand import HOLD_S, MEAN_S, Demand, Load


def demand(**fields: Any) -> Demand:
    """Of a model with one to four engines of ten places each."""
    part = {"model": "m", "engines": {"min": 1, "max": 4}, "max_batch": 10, **fields}
    return Demand(ServePart.model_validate(part), 0.0)


def told(it: Demand, from_s: float, to_s: float, sequences: float, tokens_per_s: float = 0.0, **more: float) -> int:
    """Engines that it asks for after seconds of the same load."""
    for second in range(int(from_s), int(to_s)):
        fields = {"waiting": 0.0, "engines": 1.0, **more}
        it.note(Load(second, sequences, tokens_per_s=tokens_per_s, **fields))
    return it.wanted()["engine"]


def test_the_fewest_are_enough_for_nobody() -> None:
    assert demand().wanted() == {"engine": 1}
    assert told(demand(), 0, 100, sequences=0) == 1
    assert told(demand(engines={"min": 2, "max": 4}), 0, 100, sequences=1) == 2


def test_another_is_asked_for_before_the_first_is_full_and_none_beyond_the_most() -> None:
    assert told(demand(), 0, 10, sequences=7) == 1
    assert told(demand(), 0, 10, sequences=8) == 2
    assert told(demand(), 0, 10, sequences=1000) == 4


def test_a_moment_is_not_enough() -> None:
    it = demand()
    told(it, 0, 10, sequences=6)
    assert told(it, 10, 11, sequences=10) == 1
    assert told(it, 11, 10 + int(MEAN_S) + 2, sequences=10) == 2


def test_what_was_needed_is_kept_for_a_while() -> None:
    it = demand()
    told(it, 0, 10, sequences=20)
    assert told(it, 10, 10 + int(HOLD_S) - 1, sequences=0) == 3
    assert told(it, 10 + int(HOLD_S) - 1, 20 + int(HOLD_S), sequences=0) == 1


def test_tokens_per_second_count_once_it_is_known_what_an_engine_can_give() -> None:
    it = demand()
    assert told(it, 0, 10, sequences=3, tokens_per_s=90) == 1  # nobody waits: it might give more
    told(it, 10, 20, sequences=12, tokens_per_s=100, waiting=2)
    told(it, 20, 21 + int(HOLD_S + MEAN_S), sequences=3, tokens_per_s=50)
    assert it.wanted() == {"engine": 1}
    assert told(it, 100, 110, sequences=3, tokens_per_s=90) == 2


def test_it_sleeps_only_when_asked_to_and_wakes_with_the_first_request() -> None:
    it = demand(idle_s=30.0)
    assert told(it, 0, 30, sequences=0) == 1
    assert told(it, 30, 32, sequences=0) == 0
    assert told(it, 32, 33, sequences=1, waiting=1, engines=0) == 1
    assert told(it, 33, 60, sequences=0) == 1


def test_an_answer_between_two_looks_counts_as_a_request() -> None:
    it = demand(idle_s=30.0)
    told(it, 0, 29, sequences=0)
    told(it, 29, 30, sequences=0, tokens_per_s=5)
    assert told(it, 30, 59, sequences=0) == 1
    assert told(it, 59, 61, sequences=0) == 0


def test_what_loads_is_not_idle() -> None:
    it = demand(idle_s=30.0)
    assert told(it, 0, 100, sequences=0, engines=0) == 1
    assert told(it, 100, 129, sequences=0) == 1
    assert told(it, 129, 131, sequences=0) == 0


def test_a_sleeping_model_has_no_engine_and_sleeps_on() -> None:
    it = demand(idle_s=30.0)
    assert told(it, 0, 32, sequences=0) == 0
    assert told(it, 32, 100, sequences=0, engines=0) == 0
