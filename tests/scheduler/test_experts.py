"""Expert balance: everything is hosted, evenly, apart, and moves as little as it can."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planning.experts import assign_copies, assign_owners

NOBODY = -1


@given(st.integers(1, 60), st.integers(1, 8), st.data())
@settings(deadline=None)
def test_every_pair_has_one_owner_and_shares_are_even(pairs: int, workers: int, data: st.DataObject) -> None:
    owners = st.lists(st.integers(NOBODY, workers - 1), min_size=pairs, max_size=pairs)
    present = np.array(data.draw(owners), dtype=np.int64)
    owner = assign_owners(present, workers)
    counts = np.bincount(owner, minlength=workers)
    assert counts.sum() == pairs
    assert counts.max() - counts.min() <= 1


@given(st.integers(1, 60), st.integers(2, 8), st.data())
@settings(deadline=None)
def test_owners_move_as_little_as_possible(pairs: int, workers: int, data: st.DataObject) -> None:
    owners = st.lists(st.integers(NOBODY, workers - 1), min_size=pairs, max_size=pairs)
    present = np.array(data.draw(owners), dtype=np.int64)
    owner = assign_owners(present, workers)
    held = np.sort(np.bincount(present[present >= 0], minlength=workers))[::-1]
    low, extra = divmod(pairs, workers)
    targets = np.array([low + 1] * extra + [low] * (workers - extra))
    assert (owner == present).sum() == np.minimum(held, targets).sum()


def test_owners_follow_speed() -> None:
    owner = assign_owners(np.full(12, NOBODY), 2, np.array([2.0, 1.0]))
    assert np.bincount(owner).tolist() == [8, 4]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 3), st.data())
@settings(deadline=None)
def test_copies_are_whole_apart_and_stable(pairs: int, workers: int, copies: int, data: st.DataObject) -> None:
    places = st.lists(st.integers(0, 4), min_size=workers, max_size=workers)
    node, cohort = np.array(data.draw(places)), np.array(data.draw(places)) % 3
    host = assign_copies(np.zeros((pairs, workers), dtype=bool), node, cohort, copies)
    wanted = min(copies, len(np.unique(node)))
    assert (host.sum(axis=1) == wanted).all()
    for row in host:
        nodes = node[np.flatnonzero(row)]
        assert len(np.unique(nodes)) == len(nodes)
    if len(np.unique(node)) == workers:
        assert (assign_copies(host, node, cohort, copies) == host).all(), "what is placed well stays"


@given(st.integers(1, 40), st.integers(2, 7), st.integers(0, 6))
@settings(deadline=None)
def test_a_lost_worker_moves_nothing_else(pairs: int, workers: int, lost: int) -> None:
    lost %= workers
    node = np.arange(workers)
    host = assign_copies(np.zeros((pairs, workers), dtype=bool), node, node, 2)
    left = np.delete(host, lost, axis=1)
    after = assign_copies(left, np.arange(workers - 1), np.arange(workers - 1), 2)
    assert after.any(axis=1).all()
    assert (left & ~after).sum() <= pairs // 4, "survivors keep nearly all that they host"


def test_two_copies_lie_in_two_cohorts() -> None:
    node, cohort = np.arange(6), np.array([0, 0, 0, 1, 1, 1])
    host = assign_copies(np.zeros((24, 6), dtype=bool), node, cohort, 2)
    assert all(set(cohort[np.flatnonzero(row)]) == {0, 1} for row in host)
    assert host.sum(axis=0).tolist() == [8] * 6


def test_replica_sets_overlap() -> None:
    node = np.arange(8)
    host = assign_copies(np.zeros((64, 8), dtype=bool), node, node, 2)
    assert len({tuple(np.flatnonzero(row)) for row in host}) <= 8


def test_little_memory_gives_every_expert_one_copy_before_any_gets_two() -> None:
    host = assign_copies(np.zeros((10, 3), dtype=bool), np.arange(3), np.arange(3), 2, slots=4)
    assert host.any(axis=1).all()
    assert host.sum(axis=0).max() <= 4
    crowded = np.zeros((6, 3), dtype=bool)
    crowded[:3, :2] = True  # three experts twice, three nowhere, and room for six copies
    host = assign_copies(crowded, np.arange(3), np.arange(3), 2, slots=2)
    assert host.any(axis=1).all()
