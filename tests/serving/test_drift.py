"""Copies of experts between rescales: they follow the load into spare slots, few at a time, and not for noise."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.serving.drift import FEWEST, Drift, further_copies
from runtime.serving.routing import ExpertId
from tests.serving.harness import slot

EXPERTS = 6
PLANNED = {f"s{i}": frozenset((layer, e) for layer in range(2) for e in (2 * i, 2 * i + 1)) for i in range(3)}
SLOTS = [slot(name, "shard", name, sorted(held)) for name, held in PLANNED.items()]


def _loads(*hot: ExpertId, by: float = 8.0) -> dict[ExpertId, float]:
    return {(layer, e): 1000.0 * (by if (layer, e) in hot else 1.0) for layer in range(2) for e in range(EXPERTS)}


def _busiest(hosts: dict[str, frozenset[ExpertId]], loads: dict[ExpertId, float], layer: int) -> float:
    copies = {key: sum(key in held for held in hosts.values()) for key in loads}
    return max(sum(loads[key] / copies[key] for key in held if key[0] == layer) for held in hosts.values())


def _with(extras: dict[str, frozenset[ExpertId]]) -> dict[str, frozenset[ExpertId]]:
    return {shard: held | extras.get(shard, frozenset()) for shard, held in PLANNED.items()}


def test_an_expert_that_became_busy_gets_copies_where_there_is_room() -> None:
    loads = _loads((1, 0))
    extras = further_copies(loads, PLANNED, {}, {"s1": 4, "s2": 4})
    assert extras == {"s1": {(1, 0)}, "s2": {(1, 0)}}
    assert _busiest(_with(extras), loads, 1) < 0.6 * _busiest(PLANNED, loads, 1)


def test_without_a_spare_slot_or_a_busy_expert_nothing_moves() -> None:
    assert further_copies(_loads((0, 0)), PLANNED, {}, {"s0": 9}) == {}
    everywhere = dict.fromkeys(PLANNED, 9)
    assert further_copies(_loads(), PLANNED, {}, everywhere) == {}
    assert further_copies(_loads((0, 0), by=1.02), PLANNED, {}, everywhere) == {}
    few = {key: 0.01 * FEWEST * load / 1000.0 for key, load in _loads((0, 0)).items()}
    assert further_copies(few, PLANNED, {}, everywhere) == {}


def test_a_copy_stays_while_its_expert_is_warm_and_then_frees_its_slot() -> None:
    extras = further_copies(_loads((0, 0)), PLANNED, {}, {"s1": 1})
    assert extras == {"s1": {(0, 0)}}
    assert further_copies(_loads((0, 0), by=1.3), PLANNED, extras, {"s1": 0}) == extras
    assert further_copies(_loads((0, 5)), PLANNED, extras, {"s1": 0}) == {"s1": {(0, 5)}}


def test_old_counts_fade_and_a_new_plan_starts_anew() -> None:
    drift, room = Drift(), dict.fromkeys(PLANNED, 2)
    for hot in ((0, 0), (0, 4)):
        for _ in range(8):
            drift.count([int(load) for load in _loads(hot).values()])
        drift.follow(SLOTS, room)
        assert {key for held in drift.extras.values() for key in held} == {hot}
    assert not drift.follow(SLOTS, room)
    drift.forget_copies()
    assert drift.extras == {}


@given(
    st.lists(st.floats(0, 1e6), min_size=2 * EXPERTS, max_size=2 * EXPERTS),
    st.dictionaries(st.sampled_from(sorted(PLANNED)), st.integers(0, 5)),
    st.integers(0, 6),
)
def test_spare_slots_and_moves_are_never_exceeded_and_no_layer_gets_worse(
    amounts: list[float], spare: dict[str, int], moves: int
) -> None:
    loads = {divmod(place, EXPERTS): amount for place, amount in enumerate(amounts)}
    extras = further_copies(loads, PLANNED, {}, spare, moves)
    assert sum(map(len, extras.values())) <= moves
    assert all(len(held) <= spare.get(shard, 0) for shard, held in extras.items())
    assert all(not held & PLANNED[shard] for shard, held in extras.items())
    for layer in range(2):
        assert _busiest(_with(extras), loads, layer) <= _busiest(PLANNED, loads, layer) * (1 + 1e-9)
