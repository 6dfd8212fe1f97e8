"""Membership arithmetic: buddies, division of experts, what moves, what a recovery can start from."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.site.controller import LeaseKey, WorkerSlot
from runtime.training.generation import DENSE, Holding, form, newest_complete, participants, plan_moves, redivide
from runtime.training.snapshots import tag_of

NAMES = st.sampled_from("abcdefgh")
EXPERTS = [(layer, expert) for layer in range(2) for expert in range(5)]


@st.composite
def divided(draw: st.DrawFn) -> tuple[WorkerSlot, ...]:
    """Workers on some cohorts, with every expert on exactly one of them."""
    names = sorted(draw(st.sets(NAMES, min_size=1, max_size=6)))
    owners = {key: draw(st.sampled_from(names)) for key in EXPERTS}
    cohorts = {name: draw(st.sampled_from(["x", "y"])) for name in names}
    return tuple(
        WorkerSlot(
            name, "trainer", LeaseKey(name, 1), (), tuple(k for k in EXPERTS if owners[k] == name), cohort=cohorts[name]
        )
        for name in names
    )


@given(divided())
def test_a_buddy_is_somebody_else_and_of_another_cohort_where_there_is_one(slots: tuple[WorkerSlot, ...]) -> None:
    cohort = {slot.worker: slot.cohort for slot in slots}
    for member in form(1, slots).members:
        if len(slots) == 1:
            assert member.buddy == ""
            continue
        assert member.buddy != member.worker
        if len(set(cohort.values())) > 1:
            assert cohort[member.buddy] != cohort[member.worker]


@given(divided(), st.data())
def test_redivision_gives_every_expert_one_owner_and_moves_only_what_lost_its_own(
    slots: tuple[WorkerSlot, ...], data: st.DataObject
) -> None:
    survivors = data.draw(st.lists(st.sampled_from(slots), min_size=1, unique=True))
    after = redivide(survivors, EXPERTS)
    owned = [key for slot in after for key in slot.experts]
    assert sorted(owned) == EXPERTS
    for before, now in zip(survivors, after, strict=True):
        assert set(before.experts) <= set(now.experts)
    assert redivide(list(reversed(survivors)), EXPERTS) == tuple(reversed(after))


@given(divided(), divided())
def test_moves_give_everyone_what_they_lack_from_someone_who_has_it(
    old: tuple[WorkerSlot, ...], new: tuple[WorkerSlot, ...]
) -> None:
    before, after = form(1, old), form(2, new)
    holders = {DENSE: before.workers} | {k: (m.worker,) for m in before.members for k in m.slot.experts}
    moves = plan_moves(after, holders)
    has = {
        worker: {item for item, who in holders.items() if worker in who} for worker in {*before.workers, *after.workers}
    }
    for move in moves:
        assert move.item in has[move.giver]
        assert move.item not in has[move.taker]
        has[move.taker].add(move.item)
    for member in after.members:
        assert {DENSE, *member.slot.experts} <= has[member.worker]
    everyone = participants(after, moves, before.workers)
    assert everyone[: len(after.workers)] == after.workers
    assert set(everyone) == {*before.workers, *after.workers}
    assert len(everyone) == len(set(everyone))


def test_one_survivor_of_two_can_start_again_from_its_own_and_its_buddys_copy() -> None:
    held = Holding("snapshot", 8, 1, frozenset((DENSE, *EXPERTS)))
    live = Holding("live", 11, 1, frozenset((DENSE, *EXPERTS[:5])))
    source, holders = newest_complete({"a": [held, live]}, (DENSE, *EXPERTS))
    assert (source.kind, source.step, source.generation) == ("snapshot", 8, 1)
    assert set(holders.values()) == {("a",)}


def test_live_state_that_is_whole_is_better_than_any_snapshot() -> None:
    old = Holding("snapshot", 8, 1, frozenset((DENSE, *EXPERTS)))
    halves = [Holding("live", 11, 1, frozenset((DENSE, *part))) for part in (EXPERTS[:4], EXPERTS[4:])]
    source, holders = newest_complete({"a": [old, halves[0]], "b": [halves[1]]}, (DENSE, *EXPERTS))
    assert (source.kind, source.step) == ("live", 11)
    assert holders[DENSE] == ("a", "b")
    assert holders[EXPERTS[4]] == ("b",)


def test_halves_of_different_steps_or_generations_do_not_make_a_whole() -> None:
    first = Holding("snapshot", 8, 1, frozenset((DENSE, *EXPERTS[:4])))
    for step, generation in ((9, 1), (8, 2)):
        second = Holding("snapshot", step, generation, frozenset((DENSE, *EXPERTS[4:])))
        assert newest_complete({"a": [first], "b": [second]}, (DENSE, *EXPERTS)) is None
    assert newest_complete({}, (DENSE, *EXPERTS)) is None


@given(divided())
def test_tags_tell_experts_apart(slots: tuple[WorkerSlot, ...]) -> None:
    tags = tag_of(form(1, slots))
    assert sorted(tags) == EXPERTS
    assert len(set(tags.values())) == len(EXPERTS)
