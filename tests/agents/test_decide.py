"""The lease on the agent's side: laws 1 and 2 as properties, then the cases of the protocol."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agents.decide import (
    Action,
    AllGone,
    EndRaylet,
    Granted,
    Happening,
    Hold,
    JoinAsked,
    LeaveAsked,
    Phase,
    RayletEnded,
    Reclaimed,
    SayLeft,
    SayReclaim,
    StartRaylet,
    ending,
    step,
)

SPARE = ("cpu:0",)


def join(epoch: int, spare: tuple[str, ...] = SPARE) -> JoinAsked:
    return JoinAsked(epoch, "head:1", "secret", "", spare)


EPOCHS = st.integers(1, 5)
SPARES = st.sampled_from([SPARE, SPARE, ()])
HAPPENINGS = st.one_of(
    st.builds(Granted, EPOCHS, SPARES),
    st.builds(join, EPOCHS, SPARES),
    st.builds(join, EPOCHS),
    st.builds(LeaveAsked, EPOCHS),
    st.builds(Reclaimed, st.sampled_from([0.0, 0.5, 10.0]), st.just("owner")),
    st.just(RayletEnded()),
    st.just(AllGone(0)),
)


class World:
    """Carries out actions as a perfect machine would, and asserts the laws after each step."""

    def __init__(self) -> None:
        self.hold, self.now = Hold(), 0.0
        self.running = 0
        self.kill_at = float("inf")
        self.left: list[int] = []
        self.taken: set[int] = set()
        self.started: set[int] = set()
        self.must_be_free_by = float("inf")

    def happen(self, happening: Happening) -> tuple[Action, ...]:
        if isinstance(happening, AllGone | RayletEnded) and not self.running:
            return ()
        if isinstance(happening, AllGone):
            self.running, self.kill_at, self.must_be_free_by = 0, float("inf"), float("inf")
        if isinstance(happening, Reclaimed) and self.running:
            self.must_be_free_by = min(self.must_be_free_by, self.now + happening.grace_s)
        before = self.hold
        self.hold, actions = step(before, happening, self.now)
        assert self.hold.newest >= before.newest
        for action in actions:
            self._do(action)
        self._check()
        return actions

    def _do(self, action: Action) -> None:
        match action:
            case StartRaylet():
                assert not self.running, "two raylets"
                assert action.join.epoch not in self.started | set(self.left), "an epoch from the past"
                self.running = action.join.epoch
                self.started.add(action.join.epoch)
            case EndRaylet():
                assert action.epoch == self.running
                assert action.term_at <= action.kill_at
                self.kill_at = min(self.kill_at, action.kill_at)
            case SayLeft():
                assert action.epoch != self.running, "left while it runs"
                assert action.epoch not in self.left, "left twice"
                self.left.append(action.epoch)
            case SayReclaim():
                assert action.epoch == self.hold.epoch or action.epoch not in self.left

    def _check(self) -> None:
        hold = self.hold
        assert (hold.epoch == 0) == (hold.phase is Phase.IDLE)
        assert bool(self.running) == (hold.phase in (Phase.RUNNING, Phase.DRAINING, Phase.STOPPING))
        assert not self.running or self.running == hold.epoch
        assert self.kill_at <= self.must_be_free_by
        assert hold.epoch not in self.left or not hold.epoch
        self.taken |= {hold.epoch} - {0}
        self.taken |= {hold.following.epoch} if hold.following else set()


@given(st.lists(st.tuples(HAPPENINGS, st.floats(0, 3)), max_size=40))
@example([(Granted(1, SPARE), 0.0), (Granted(2, SPARE), 0.0)])
@example([(join(1), 0.0), (Granted(2, SPARE), 0.0), (LeaveAsked(3), 0.0), (AllGone(0), 0.0)])
def test_laws_hold_under_any_interleaving(story: list[tuple[Happening, float]]) -> None:
    world = World()
    for happening, pause in story:
        world.happen(happening)
        world.now += pause
    world.happen(Reclaimed(0.0, "owner"))
    world.happen(AllGone(1))
    assert world.hold.phase is Phase.IDLE
    assert world.taken <= set(world.left)


@given(st.floats(0, 1e6), st.floats(0, 1e5))
def test_killing_starts_before_the_deadline_and_leaves_time(now: float, grace_s: float) -> None:
    term_at, kill_at = ending(now, now + grace_s)
    assert now <= term_at <= kill_at <= now + grace_s
    assert kill_at - now >= 0.74 * grace_s - 1e-6


def run(*happenings: Happening, hold: Hold | None = None, now: float = 0.0) -> tuple[Hold, list[Action]]:
    hold, done = hold or Hold(), []
    for happening in happenings:
        hold, actions = step(hold, happening, now)
        done.extend(actions)
    return hold, done


def test_nothing_starts_before_a_grant_and_a_join_together_is_enough() -> None:
    assert run(Granted(1, SPARE))[1] == []
    assert run(Granted(1, SPARE), join(1))[1] == [StartRaylet(join(1), SPARE)]
    assert run(join(1))[1] == [StartRaylet(join(1), SPARE)]


def test_a_join_twice_starts_once() -> None:
    assert len(run(Granted(1, SPARE), join(1), join(1))[1]) == 1


@pytest.mark.parametrize("late", [Granted(3, SPARE), join(3), LeaveAsked(3)])
def test_what_comes_from_a_past_epoch_has_no_effect(late: Happening) -> None:
    hold, _ = run(Granted(4, SPARE), join(4))
    assert run(late, hold=hold) == (hold, [])


def test_a_newer_grant_ends_the_old_raylet_before_the_new_one_starts() -> None:
    hold, done = run(Granted(1, SPARE), join(1), Granted(2, SPARE), join(2))
    assert [type(a) for a in done] == [StartRaylet, EndRaylet]
    hold, done = run(AllGone(0), hold=hold)
    assert done == [SayLeft(1, "released", 0.0, 0), StartRaylet(join(2), SPARE)]
    assert hold.epoch == 2


def test_a_grant_that_crosses_the_owners_return_is_given_back_at_once() -> None:
    assert run(Granted(1, ())) == (Hold(newest=1), [SayLeft(1, "reclaimed", 0.0, 0)])


def test_a_reclaim_before_the_join_frees_at_once() -> None:
    hold, done = run(Granted(1, SPARE), Reclaimed(10, "owner"))
    assert done == [SayReclaim(1, 10.0, 10, "owner"), SayLeft(1, "reclaimed", 0.0, 0)]
    assert run(join(1), hold=hold) == (hold, [])


def test_only_an_earlier_deadline_is_news() -> None:
    hold, _ = run(Granted(1, SPARE), join(1), Reclaimed(10, "owner"))
    assert run(Reclaimed(20, "owner"), hold=hold) == (hold, [])
    assert run(Reclaimed(1, "owner"), hold=hold)[0].deadline == 1.0


def test_free_s_runs_from_the_first_reclaim() -> None:
    hold, _ = run(Granted(1, SPARE), join(1), Reclaimed(10, "owner"), now=100.0)
    hold, _ = run(LeaveAsked(1), hold=hold, now=102.0)
    assert run(AllGone(3), hold=hold, now=102.5)[1] == [SayLeft(1, "reclaimed", 2.5, 3)]


def test_a_raylet_that_dies_says_so_but_a_reclaim_before_it_counts_as_one() -> None:
    hold, _ = run(Granted(1, SPARE), join(1))
    assert run(RayletEnded(), AllGone(0), hold=hold)[1] == [SayLeft(1, "raylet_died", 0.0, 0)]
    done = run(Reclaimed(10, "owner"), RayletEnded(), AllGone(0), hold=hold)[1]
    assert done[-1] == SayLeft(1, "reclaimed", 0.0, 0)


def test_a_leave_for_a_lease_never_heard_of_is_answered() -> None:
    assert run(LeaveAsked(9)) == (Hold(newest=9), [SayLeft(9, "released", 0.0, 0)])


def test_the_rays_token_is_not_shown() -> None:
    assert "secret" not in repr(join(1))
