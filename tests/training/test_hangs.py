"""A hang stands out against the other workers and against the worker's own past; a busy machine is none."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.training.hangs import AWAY_S, HANG_S, STANDS_OUT, Ear, HangWatch, Silence, hung
from runtime.training.warm_up import WarmUp

SECONDS = st.floats(0, 100)
SILENCES = st.dictionaries(st.sampled_from("abcdef"), st.builds(Silence, SECONDS, SECONDS), max_size=6)


@given(SILENCES)
def test_at_most_one_hangs_and_its_silence_is_by_far_the_longest(silences: dict[str, Silence]) -> None:
    found = hung(silences)
    assert len(found) <= 1
    for worker in found:
        silent_s = silences[worker].now_s
        assert silent_s > HANG_S
        assert all(silent_s > STANDS_OUT * other.now_s for name, other in silences.items() if name != worker)


@given(SILENCES, st.floats(1, 10))
def test_a_machine_that_slows_all_down_makes_no_hang(silences: dict[str, Silence], slower: float) -> None:
    def slowed(by: float) -> dict[str, Silence]:
        return {w: Silence(s.now_s, by * s.before_s) for w, s in silences.items()}

    assert set(hung(slowed(slower))) <= set(hung(silences))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def beating(clock: Clock, ears: dict[str, Ear], watch: HangWatch, seconds: float, mute: str = "") -> list[str]:
    """What is found while all but `mute` beat, and somebody looks, every 0.25 s."""
    for _ in range(int(seconds / 0.25)):
        clock.now_s += 0.25
        for worker, ear in ears.items():
            if worker not in mute:
                ear.hear()
        if found := watch.look(ears, ears.keys()):
            return found
    return []


def test_one_that_stops_is_found_within_two_seconds_and_two_are_not() -> None:
    clock = Clock()
    ears, watch = {w: Ear(clock) for w in "abc"}, HangWatch(clock)
    assert beating(clock, ears, watch, 10) == []
    stopped_s = clock.now_s
    assert beating(clock, ears, watch, 5, mute="b") == ["b"]
    assert clock.now_s - stopped_s <= 2.0
    for ear in ears.values():
        ear.hear()
    assert beating(clock, ears, watch, 5, mute="bc") == []


def test_a_silence_that_was_gets_its_worker_more_patience_for_a_while() -> None:
    clock = Clock()
    ears, watch = {w: Ear(clock) for w in "ab"}, HangWatch(clock)
    assert beating(clock, ears, watch, 1.25, mute="b") == []
    assert beating(clock, ears, watch, 5) == []
    assert beating(clock, ears, watch, 3, mute="b") == []
    assert beating(clock, ears, watch, 100) == []
    assert beating(clock, ears, watch, 2, mute="b") == ["b"]


def test_a_listener_that_was_away_accuses_nobody() -> None:
    clock = Clock()
    ears, watch = {w: Ear(clock) for w in "ab"}, HangWatch(clock)
    clock.now_s += AWAY_S + 30
    ears["a"].hear()  # whose beats it reads first
    assert watch.look(ears, ears.keys()) == []
    assert beating(clock, ears, watch, 5) == []


def test_a_workers_warm_up_is_told_part_by_part() -> None:
    clock = Clock()
    warm_up = WarmUp(clock)
    for kind, at_s in (("adopted", 0.5), ("imported", 1.5), ("step", 1.6), ("ready", 1.75), ("switched", 2.0)):
        clock.now_s = at_s
        warm_up.hear(kind)
    clock.now_s = 9.0
    warm_up.hear("switched")
    assert str(warm_up) == "process 0.50 s, imports 1.00 s, model 0.25 s, state 0.25 s"
    found = WarmUp(clock)
    found.hear("adopted")
    found.hear("switched")
    assert list(found.parts()) == ["process", "state"]
