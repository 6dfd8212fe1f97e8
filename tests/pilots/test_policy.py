"""The bag of pilots: what is asked for never exceeds what is allowed, and once it is done nothing more is asked for."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agents.batch import Limits, Machine, PilotJob, PilotState
from agents.pilots.policy import Bag, Decision, Work, decide, fitting, room

LENGTHS_S = tuple(60.0 * minutes for minutes in (2, 4, 8, 22, 90))
PENDING, RUNNING, ENDING = PilotState.PENDING, PilotState.RUNNING, PilotState.ENDING

bags = st.builds(
    Bag,
    lengths_s=st.lists(st.sampled_from(LENGTHS_S), min_size=1, unique=True).map(lambda s: tuple(sorted(s))),
    each=st.integers(1, 12),
    most_pending=st.integers(1, 60),
    cap=st.none() | st.integers(1, 12),
    reserve=st.integers(0, 4),
)
works = st.builds(Work, nodes=st.integers(0, 15), at_work=st.frozensets(st.sampled_from(["n1", "n2", "n3"])))
limits = st.builds(
    Limits,
    notice_s=st.just(30.0),
    preemptible=st.booleans(),
    longest_s=st.sampled_from([0.0, 300.0, 3600.0, float("inf")]),
)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    nodes = draw(st.integers(0, 12))
    names = [f"n{number}" for number in range(1, nodes + 1)]
    states = draw(st.lists(st.sampled_from([PENDING, RUNNING, ENDING]), max_size=30))
    free, pilots = list(names), []
    for number, state in enumerate(states, 1):
        if state is PENDING or free:
            node = "" if state is PENDING else free.pop()
            pilots.append(PilotJob(str(number), state, draw(st.sampled_from((*LENGTHS_S, 77.0))), node))
    leaving = draw(st.lists(st.sampled_from(names), max_size=2, unique=True)) if names else []
    waiting = draw(st.integers(0, 3))
    window_s = draw(st.none() | st.floats(0, 8000)) if waiting else None
    return Machine(nodes, tuple(free), tuple(leaving), tuple(pilots), waiting, window_s)


def done(machine: Machine, decision: Decision) -> Machine:
    """The machine once the decision is carried out, and nothing else has happened."""
    kept = [pilot for pilot in machine.pilots if pilot.id not in decision.cancel]
    first = 1000
    for order in decision.submit:
        kept += [PilotJob(str(first + i), PENDING, order.length_s) for i in range(order.count)]
        first += order.count
    return replace(machine, pilots=tuple(kept))


@given(machines(), works, bags, limits)
def test_never_more_than_allowed(machine: Machine, work: Work, bag: Bag, limit: Limits) -> None:
    decision = decide(machine, work, bag, limit)
    after = done(machine, decision)
    waiting, running = after.in_state(PENDING), after.in_state(RUNNING)
    if machine.nodes:
        assert len(waiting) <= bag.most_pending
        assert len(running) <= work.nodes
        assert bag.cap is None or len(running) <= bag.cap
        if room(machine, work, bag) < machine.nodes and (waiting or decision.submit):
            assert len(waiting) + len(running) <= max(room(machine, work, bag), len(running))
        assert {pilot.length_s for pilot in waiting} <= set(fitting(bag.lengths_s, machine, limit))


@given(machines(), works, bags, limits)
def test_once_done_nothing_is_left_to_do(machine: Machine, work: Work, bag: Bag, limit: Limits) -> None:
    again = decide(done(machine, decide(machine, work, bag, limit)), work, bag, limit)
    assert (again.submit, again.cancel) == ((), ())


@given(machines(), bags, limits)
def test_without_work_there_are_no_pilots(machine: Machine, bag: Bag, limit: Limits) -> None:
    decision = decide(machine, Work(0), bag, limit)
    assert not decision.submit
    assert set(decision.cancel) == {p.id for p in machine.pilots if p.state is not ENDING}


@given(machines(), works, bags, limits)
def test_longer_ones_go_first(machine: Machine, work: Work, bag: Bag, limit: Limits) -> None:
    orders = sorted(decide(machine, work, bag, limit).submit)
    assert [order.nice for order in orders] == sorted((order.nice for order in orders), reverse=True)
    assert len({order.nice for order in orders}) == len(orders)


@given(machines(), works, bags, limits)
def test_same_look_same_decision(machine: Machine, work: Work, bag: Bag, limit: Limits) -> None:
    turned = replace(machine, pilots=machine.pilots[::-1])
    assert decide(machine, work, bag, limit) == decide(turned, work, bag, limit)


def test_nobody_is_held_up_where_pilots_are_not_preempted() -> None:
    limit = Limits(30.0, preemptible=False)
    waiting = Machine(4, ("n1",), waiting=2, window_s=500.0)
    assert fitting(LENGTHS_S, waiting, limit) == (120.0, 240.0, 480.0)
    assert fitting(LENGTHS_S, replace(waiting, window_s=None), limit) == (120.0,)
    assert fitting(LENGTHS_S, replace(waiting, window_s=60.0), limit) == ()
    assert "short enough" in decide(replace(waiting, window_s=60.0), Work(4), Bag(LENGTHS_S), limit).reason
    assert fitting(LENGTHS_S, Machine(4), limit) == LENGTHS_S


def test_nodes_that_an_operator_empties_and_idle_ones_go_first() -> None:
    pilots = tuple(PilotJob(f"1_{n}", RUNNING, 480.0, f"n{n}") for n in range(1, 5))
    machine = Machine(3, leaving=("n4",), pilots=pilots)
    decision = decide(machine, Work(2, at_work=frozenset({"n2", "n3"})), Bag(LENGTHS_S), Limits(30.0, True))
    assert decision.cancel == ("1_1", "1_4")


def test_a_silent_controller_takes_no_pilot() -> None:
    pilots = (PilotJob("1", RUNNING, 480.0, "n1"), PilotJob("2", PENDING, 480.0))
    decision = decide(Machine(0, pilots=pilots), Work(4), Bag(LENGTHS_S), Limits(30.0, True))
    assert (decision.submit, decision.cancel) == ((), ())
