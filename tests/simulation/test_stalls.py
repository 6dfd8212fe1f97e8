"""What a stall costs is weighed before a job starts, grows or shrinks, and nobody waits for ever because of it."""

from __future__ import annotations

import pytest

from scheduler.simulation.timeline import rows
from tests.simulation.test_replay import job, replay, trace_of

FLAT = ((1, 10.0), (2, 10.3), (8, 12.1))
"""A second node adds little to it: less than a stall of 24 s costs in the time that decisions stand here."""


def holds_of(done: object, node: str) -> list[float]:
    """When the job got the node."""
    return [at_s for at_s, _, of, event in rows(done.jobs) if (of, event) == (node, "start")]  # type: ignore[attr-defined]


@pytest.mark.parametrize(("at_s", "gets_it"), [(4.0, True), (200.0, False)])
def test_a_stall_that_runs_is_paid_already(at_s: float, gets_it: bool) -> None:
    """A node that comes during the stall of the start is taken; the same one later is not worth a stall of its own."""
    slow = job(curve=FLAT, rescale_up_s=24.0, rescale_down_s=12.0)
    done = replay(trace_of(("n", 0.0, 400.0), ("o", at_s, 400.0)), [slow], endless=True)
    assert bool(holds_of(done, "o")) is gets_it


def test_a_start_from_nothing_is_not_free() -> None:
    """Of two jobs that lost everything the one that starts quickly comes first, though the other counts as much."""
    slow, quick = job("a", max_width=1, rescale_up_s=100.0), job("b", max_width=1, rescale_up_s=1.0)
    both = [("n", 0.0, 1000.0), ("o", 0.0, 1000.0)]
    done = replay(trace_of(*both, ("p", 1010.0, 2000.0)), [slow, quick], endless=True)
    assert next(name for _, name, node, event in rows(done.jobs) if (node, event) == ("p", "start")) == "b"


@pytest.mark.parametrize("up_s", [3.0, 400.0, 2000.0])
def test_a_start_that_takes_longer_than_decisions_stand_is_made_where_nobody_else_wants_the_node(up_s: float) -> None:
    done = replay(trace_of(("n", 0.0, 5000.0), ("o", 5050.0, 20_000.0)), [job(rescale_up_s=up_s)], endless=True)
    assert holds_of(done, "o") == [5050.0]
    assert done.jobs[0].clock.tally.useful_s == pytest.approx(5000 - up_s + 14_950 - up_s)


def test_whoever_is_slow_to_start_gets_its_turn_too() -> None:
    """One node for two jobs, of which one needs longer to start than decisions stand; once it was given the node it
    is left to it until it runs."""
    slow, quick = job("a", max_width=1, rescale_up_s=1500.0), job("b", max_width=1, rescale_up_s=1.0)
    done = replay(trace_of(("n", 0.0, 200_000.0)), [slow, quick], endless=True)
    holds = list(rows(done.jobs))
    turns = [(name, stop_s - at_s) for (at_s, name, *_), (stop_s, *_) in zip(holds[::2], holds[1::2], strict=True)]
    assert [name for name, _ in turns] == ["a" if number % 2 == 0 else "b" for number in range(len(turns))]
    assert len(turns) > 4
    assert all(lasted_s > 1500 for name, lasted_s in turns[2:-1] if name == "a"), "after both have had their first turn"
    assert done.unsettled == 0
