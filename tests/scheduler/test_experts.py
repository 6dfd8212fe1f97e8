"""Owners of experts in training: everything is hosted, evenly, and moves as little as it can."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planning.experts import assign_owners

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
