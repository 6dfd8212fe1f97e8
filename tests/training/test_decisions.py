"""What a controller decides, over arbitrary phases of its workers."""

from __future__ import annotations

from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from runtime.training.decisions import IDLE, TOGETHER_S, Go, LinkPhase, View, Wait, all_items, decide, leftover
from runtime.training.generation import form
from tests.training.undisturbed import slots, tiny_spec

SPEC = tiny_spec()
ITEMS = all_items(2, 4)
PHASES = st.sampled_from([p for p in get_args(LinkPhase) if p not in ("finished", "failed")])
CREW = st.lists(st.sampled_from("abcde"), unique=True, min_size=0, max_size=5).map(sorted)


def view(target: str, members: str, phases: dict[str, str], **more: object) -> View:
    generation = form(1, slots(SPEC, list(members))) if members else None
    wanted = slots(SPEC, list(target)) if target else ()
    return View(wanted, generation, phases, ITEMS, min_width=2, **more)


def trained(go: object) -> list[str]:
    assert isinstance(go, Go)
    return [slot.worker for slot in go.slots]


@given(CREW, CREW, st.dictionaries(st.sampled_from("abcde"), PHASES), st.floats(0, 20))
def test_a_switch_is_whole_or_a_park(target: list[str], members: list[str], phases: dict, now_s: float) -> None:
    seen = view("".join(target), "".join(members), phases, now_s=now_s, deadline_s=10.0)
    go = decide(seen)
    if isinstance(go, Wait):
        return
    assert sorted(key for slot in go.slots for key in slot.experts) == list(ITEMS)
    assert all(seen.phase(slot.worker) in IDLE | {"training"} for slot in go.slots)
    if go.then == "train":
        assert len(go.slots) >= seen.min_width
        assert {s.worker for s in go.slots} <= set(target)
    if go.is_graceful:  # only a generation that is all there can hand over at a boundary
        assert all(seen.phase(worker) == "training" for worker in members)


def test_a_start_waits_for_everyone() -> None:
    assert decide(view("ab", "", {"a": "ready", "b": "starting"})) == Wait()
    assert trained(decide(view("ab", "", {"a": "ready", "b": "ready"}))) == ["a", "b"]


def test_a_start_goes_on_without_one_that_did_not_come_up() -> None:
    assert trained(decide(view("abc", "", {"a": "ready", "b": "ready", "c": "lost"}))) == ["a", "b"]
    assert decide(view("ab", "", {"a": "ready", "b": "lost"})) == Wait()


def test_training_goes_on_until_all_joiners_are_ready() -> None:
    phases = {"a": "training", "b": "training", "c": "starting"}
    assert decide(view("abc", "ab", phases)) == Wait()
    go = decide(view("abc", "ab", phases | {"c": "ready"}))
    assert trained(go) == ["a", "b", "c"]
    assert go.is_graceful


def test_who_is_ready_waits_half_a_second_for_others_that_join() -> None:
    phases = {"a": "training", "b": "training", "c": "ready", "d": "starting"}
    assert decide(view("abcd", "ab", phases, ready_s={"c": 7.0}, now_s=7.0 + TOGETHER_S / 2)) == Wait()
    go = decide(view("abcd", "ab", phases, ready_s={"c": 7.0}, now_s=7.0 + TOGETHER_S))
    assert trained(go) == ["a", "b", "c"]
    assert go.is_graceful
    joined = {"a": "training", "b": "training", "c": "training", "d": "starting"}
    assert decide(view("abcd", "abc", joined, ready_s={"c": 7.0}, now_s=9.0)) == Wait()
    assert trained(decide(view("abcd", "abc", joined | {"d": "ready"}, now_s=9.0))) == ["a", "b", "c", "d"]


def test_who_takes_a_leaver_s_place_waits_for_all_that_do() -> None:
    phases = {"a": "training", "b": "training", "c": "ready", "d": "starting"}
    assert decide(view("acd", "ab", phases, ready_s={"c": 0.0}, now_s=9.0)) == Wait()


def test_a_joiner_that_does_not_come_up_is_left_out() -> None:
    decision = decide(view("abc", "ab", {"a": "training", "b": "training", "c": "lost"}))
    assert decision == Wait(is_reached=True)


def test_a_leaver_whose_deadline_nears_does_not_wait_for_a_joiner() -> None:
    phases = {"a": "training", "b": "training", "c": "training", "d": "starting"}
    assert decide(view("abd", "abc", phases, now_s=0.0, deadline_s=10.0)) == Wait()
    assert trained(decide(view("abd", "abc", phases, now_s=6.0, deadline_s=10.0))) == ["a", "b"]


def test_survivors_of_a_loss_go_on_at_once_when_all_have_noticed() -> None:
    phases = {"a": "broken", "b": "training", "c": "lost", "d": "starting"}
    assert decide(view("abcd", "abc", phases)) == Wait()
    go = decide(view("abcd", "abc", phases | {"b": "broken"}))
    assert trained(go) == ["a", "b"]
    assert not go.is_graceful


def test_too_few_survivors_park_and_wait() -> None:
    phases = {"a": "broken", "b": "lost"}
    go = decide(view("ab", "ab", phases))
    assert (trained(go), go.then) == (["a"], "park")
    assert decide(view("ab", "ab", {"a": "parked", "b": "lost"})) == Wait()
    assert trained(decide(view("ac", "ab", {"a": "parked", "b": "lost", "c": "ready"}))) == ["a", "c"]


def test_a_reclaim_of_everything_parks_first() -> None:
    go = decide(view("", "ab", {"a": "training", "b": "training"}))
    assert (trained(go), go.then, go.is_graceful) == (["a", "b"], "park", True)
    assert decide(view("", "ab", {"a": "parked", "b": "parked"})) == Wait(is_reached=True)


def test_what_is_as_it_should_be_is_left_alone() -> None:
    decision = decide(view("ab", "ab", {"a": "training", "b": "training"}))
    assert decision == Wait(is_reached=True)


def test_a_worker_is_left_over_when_neither_the_target_nor_the_generation_has_it() -> None:
    generation = form(1, slots(SPEC, ["a", "b"]))
    assert leftover(["a", "b", "c", "d"], ["d"], generation) == ["c"]
