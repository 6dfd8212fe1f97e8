"""What the controller decides: new copies before old ones go, and everybody gone by the deadline."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from agents.decide import ending
from runtime.serving.rollout import PRESS_S, Rollout, Up, decide, leave_at_s
from runtime.serving.routing import ExpertId, share_out, table
from runtime.site.controller import WorkerSlot
from tests.serving.harness import slot

HEARD_S = 0.2
"""A site may hear of a reclaim so much later than the agent."""
EXPERTS = [(0, e) for e in range(4)]
some_experts = st.lists(st.sampled_from(EXPERTS), unique=True)
names = st.sampled_from(["a", "b", "c", "d"])
shard_sets = st.dictionaries(names, some_experts, max_size=4)
engine_sets = st.sets(st.sampled_from(["e", "f"]))


def _wanted(shards: dict[str, list[ExpertId]], engines: set[str]) -> tuple[WorkerSlot, ...]:
    held = [slot(name, "shard", "n", experts) for name, experts in sorted(shards.items())]
    return (*held, *(slot(name, "engine", "n") for name in sorted(engines)))


def _up(shards: dict[str, list[ExpertId]], engines: set[str]) -> dict[str, Up]:
    return {w.worker: Up(w, ("h", 1), frozenset(w.experts)) for w in _wanted(shards, engines)}


def _held(workers: dict[str, Up]) -> set[ExpertId]:
    return {expert for worker in workers.values() for expert in worker.experts}


@given(shard_sets, engine_sets, shard_sets, engine_sets, st.sets(names), st.sets(names))
def test_nothing_that_is_needed_leaves_without_pressure(
    shards: dict[str, list[ExpertId]],
    engines: set[str],
    had: dict[str, list[ExpertId]],
    had_engines: set[str],
    busy: set[str],
    lost: set[str],
) -> None:
    up = {name: worker for name, worker in _up(had, had_engines).items() if name not in lost}
    rollout = decide(_wanted(shards, engines), up, busy, lost, pressed=False)
    left = {name: worker for name, worker in up.items() if name not in rollout.stop}
    assert _held(left) == _held(up)
    routed = {expert for experts in rollout.route.values() for expert in experts}
    assert routed == _held(up)
    if had_engines:
        assert rollout.engines
    assert not set(rollout.stop) & (set(rollout.route) | set(rollout.engines))
    for name, experts in rollout.drop.items():
        assert not experts & rollout.route[name]
        assert not experts & {e for s in _wanted(shards, engines) if s.worker == name for e in s.experts}


@given(shard_sets, engine_sets, shard_sets, engine_sets, st.sets(names))
def test_under_pressure_everybody_unwanted_leaves(
    shards: dict[str, list[ExpertId]],
    engines: set[str],
    had: dict[str, list[ExpertId]],
    had_engines: set[str],
    busy: set[str],
) -> None:
    wanted, up = _wanted(shards, engines), _up(had, had_engines)
    rollout = decide(wanted, up, busy, set(), pressed=True)
    names = {s.worker for s in wanted}
    assert set(rollout.stop) == (set(up) | busy) - names
    assert set(rollout.route) | set(rollout.engines) <= names


@given(shard_sets, engine_sets, shard_sets, engine_sets)
def test_following_the_decisions_ends_in_the_assignment(
    shards: dict[str, list[ExpertId]], engines: set[str], had: dict[str, list[ExpertId]], had_engines: set[str]
) -> None:
    wanted, up = _wanted(shards, engines), _up(had, had_engines)
    for _ in range(8):
        rollout = decide(wanted, up, set(), set(), pressed=not wanted)
        if rollout.complete:
            break
        up = _after(rollout, up)
    needed = _held(_up(had, had_engines)) - {e for s in wanted for e in s.experts}
    if not needed and (engines or not had_engines):
        assert rollout.complete
        assert set(up) == {s.worker for s in wanted}


def _after(rollout: Rollout, up: dict[str, Up]) -> dict[str, Up]:
    after = dict(up)
    for started in rollout.start:
        after[started.worker] = Up(started, ("h", 1))
    for name, experts in rollout.load.items():
        after[name] = Up(up[name].slot, ("h", 1), up[name].experts | experts)
    for name, experts in rollout.drop.items():
        after[name] = Up(up[name].slot, ("h", 1), up[name].experts - experts)
    return {name: worker for name, worker in after.items() if name not in rollout.stop}


@given(shard_sets, shard_sets)
def test_what_nobody_has_is_loaded_before_second_copies(
    shards: dict[str, list[ExpertId]], had: dict[str, list[ExpertId]]
) -> None:
    up = _up({name: had.get(name, []) for name in shards}, set())
    load = decide(_wanted(shards, set()), up, set(), set(), pressed=False).load
    missing = {name: lacks for name, experts in shards.items() if (lacks := set(experts) - up[name].experts)}
    nobodys = {expert for experts in shards.values() for expert in experts} - _held(up)
    urgent = {name: experts for name, experts in load.items() if experts < missing[name] or experts <= nobodys}
    assert set(load) == set(missing)
    assert {expert for experts in urgent.values() for expert in experts} == nobodys
    assert all(experts == missing[name] for name, experts in load.items() if name not in urgent)


def test_what_nobody_has_is_shared_out_evenly() -> None:
    up = _up({"a": [], "b": []}, set())
    load = decide(_wanted({"a": EXPERTS, "b": EXPERTS}, set()), up, set(), set(), pressed=False).load
    assert {name: len(experts) for name, experts in load.items()} == {"a": 2, "b": 2}
    assert _held(_after(Rollout(load=load), up)) == set(EXPERTS)


def test_second_copies_are_loaded_in_portions() -> None:
    many = [(layer, expert) for layer in range(10) for expert in range(8)]
    wanted, up, loads = _wanted({"a": many, "b": many}, set()), _up({"a": many, "b": []}, set()), []
    while not (rollout := decide(wanted, up, set(), set(), pressed=False)).complete:
        loads.append(len(rollout.load["b"]))
        up = _after(rollout, up)
        assert rollout.route["b"] <= up["b"].experts
    assert loads == [32, 32, 16]


def test_a_drained_shard_serves_on_until_its_successor_has_loaded() -> None:
    old = _up({"a": EXPERTS, "b": EXPERTS}, {"e"})
    wanted = _wanted({"b": EXPERTS, "c": EXPERTS}, {"e"})
    waiting = decide(wanted, old, {"c"}, set(), pressed=False)
    assert set(waiting.route) == {"a", "b"}
    assert not waiting.stop
    ready = decide(wanted, {**old, **_up({"c": EXPERTS}, set())}, set(), set(), pressed=False)
    assert set(ready.route) == {"b", "c"}
    assert ready.stop == ("a",)


def test_a_leaving_engine_hands_over_as_soon_as_another_is_up() -> None:
    up = _up({"a": EXPERTS}, {"e", "f"})
    assert decide(_wanted({"a": EXPERTS}, {"f"}), up, set(), set(), pressed=False).engines == ("f",)
    alone = decide(_wanted({"a": EXPERTS}, {"f"}), _up({"a": EXPERTS}, {"e"}), {"f"}, set(), pressed=False)
    assert alone.engines == ("e",)
    assert not alone.stop


def test_a_start_that_nobody_wants_any_more_is_stopped() -> None:
    rollout = decide(_wanted({"a": EXPERTS}, {"e"}), _up({"a": EXPERTS}, {"e"}), {"c"}, set(), pressed=False)
    assert rollout.stop == ("c",)


@given(
    st.dictionaries(names, st.lists(st.integers(0, 5), unique=True)),
    st.dictionaries(st.integers(0, 5), st.integers(1, 50)),
    st.sets(names),
    st.sets(names),
)
def test_calls_go_to_live_copies_and_only_orphans_are_left(
    held: dict[str, list[int]], rows: dict[int, int], dead: set[str], slow: set[str]
) -> None:
    routing = table(1, {name: (("h", 1), [(3, e) for e in experts]) for name, experts in held.items()})
    chosen, orphans = share_out(routing, 3, rows, (dead, slow))
    assert sorted([e for experts in chosen.values() for e in experts] + orphans) == sorted(rows)
    for shard, experts in chosen.items():
        assert shard not in dead
        assert set(experts) <= set(held[shard])
        if shard in slow:
            others = [s for s in held if s not in dead and s not in slow]
            assert not any(e in held[s] for e in experts for s in others)
    for expert in orphans:
        assert not any(expert in experts for shard, experts in held.items() if shard not in dead)


@given(st.floats(3.0, 600.0))
def test_who_must_leave_has_left_before_its_agent_ends_it(grace_s: float) -> None:
    ended_s, _ = ending(0.0, grace_s)
    leaves_s = leave_at_s(grace_s, HEARD_S)
    assert leaves_s < ended_s
    assert leaves_s >= min(grace_s - PRESS_S, 0.4 * grace_s), "but not sooner than it must"


def test_nobody_must_leave_without_a_deadline_and_at_once_after_it() -> None:
    assert leave_at_s(None, 5.0) == math.inf
    assert leave_at_s(4.0, 5.0) <= 5.0
