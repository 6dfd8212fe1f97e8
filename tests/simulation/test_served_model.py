"""A replay's served model: what is live when, by bytes to load, what nobody has first."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.cluster import LeaseKey
from scheduler.domain.jobs import Assignment, ExpertId, ModelShape, Role, WorkerSlot
from scheduler.simulation.served_model import ServedModel

SHAPE = ModelShape(layers=1, experts=8, expert_bytes=10, dense_bytes=100)
ALL: tuple[ExpertId, ...] = tuple((0, e) for e in range(8))
nodes = st.sampled_from(["a", "b", "c"])
spreads = st.dictionaries(nodes, st.sets(st.sampled_from(ALL)), min_size=1)
acts = st.lists(st.tuples(st.floats(0.1, 20), st.one_of(spreads, nodes)), max_size=8)


def spread(hosts: dict[str, tuple[ExpertId, ...]], revision: int = 1) -> Assignment:
    slots = [WorkerSlot(n, Role.SHARD, LeaseKey(n, 1), ("d",), experts) for n, experts in sorted(hosts.items())]
    return Assignment("j", revision, tuple(slots))


def whole_s(model: ServedModel) -> float:
    return sum(to_s - from_s for from_s, to_s, whole in model.spans if whole)


def test_a_load_takes_as_long_as_its_bytes_and_starts_when_the_node_is_warm() -> None:
    model = ServedModel(SHAPE, bytes_per_s=10.0)
    model.assign(spread({"a": ALL}), {"a": 3.0}, 0.0)
    model.advance_to(20.0)
    assert whole_s(model) == pytest.approx(9.0)
    assert model.moved_bytes == 80


def test_what_nobody_has_is_shared_out_and_loaded_first() -> None:
    model = ServedModel(SHAPE, bytes_per_s=10.0)
    model.assign(spread({"a": ALL, "b": ALL}), {"a": 0.0, "b": 0.0}, 0.0)
    assert model.loaded_s() == pytest.approx(8.0)
    model.advance_to(20.0)
    assert whole_s(model) == pytest.approx(16.0), "half of the experts each, then the others"
    assert model.moved_bytes == 160


def test_a_lost_second_copy_leaves_all_live() -> None:
    model = ServedModel(SHAPE, bytes_per_s=10.0)
    model.assign(spread({"a": ALL, "b": ALL}), {"a": 0.0, "b": 0.0}, 0.0)
    model.lose("b", 10.0)
    model.assign(spread({"a": ALL, "c": ALL}, 2), {"a": 0.0, "c": 10.0}, 10.0)
    model.advance_to(30.0)
    assert whole_s(model) == pytest.approx(26.0)


def test_what_is_given_up_is_unloaded_only_after_all_is_loaded() -> None:
    model = ServedModel(SHAPE, bytes_per_s=10.0)
    model.assign(spread({"a": ALL}), {"a": 0.0}, 0.0)
    model.assign(spread({"b": ALL}, 2), {"a": 0.0, "b": 10.0}, 10.0)
    model.advance_to(30.0)
    assert whole_s(model) == pytest.approx(22.0)
    model.lose("b", 30.0)
    model.advance_to(31.0)
    assert not model.spans[-1][2], "a has unloaded what it gave up"


@given(acts)
def test_time_is_whole_and_bytes_only_grow(acts: list[tuple[float, object]]) -> None:
    model, now_s, moved, revision = ServedModel(SHAPE, bytes_per_s=10.0), 0.0, 0, 0
    for passed_s, act in acts:
        now_s, revision = now_s + passed_s, revision + 1
        if isinstance(act, str):
            model.lose(act, now_s)
        elif isinstance(act, dict):
            hosts = {node: tuple(sorted(experts)) for node, experts in act.items()}
            model.assign(spread(hosts, revision), dict.fromkeys(hosts, now_s), now_s)
        assert model.moved_bytes >= moved
        moved = model.moved_bytes
    loaded_s = model.loaded_s()
    model.advance_to(max(loaded_s, now_s) + 1.0)
    assert model.loaded_s() <= max(loaded_s, now_s) + 1.0, "nothing is loaded after that"
    spans = model.spans
    assert all(one[1] == two[0] for one, two in pairwise(spans))
