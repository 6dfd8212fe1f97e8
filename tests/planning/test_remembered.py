from __future__ import annotations

from scheduler.planning.remembered import Remembered


def test_a_result_is_made_once_for_an_object_and_a_way_to_look_at_it() -> None:
    known: Remembered[int] = Remembered(10)
    curve, equal = tuple(range(2)), tuple(range(2))
    assert known.of(curve, "a", lambda: 1) == 1
    assert known.of(curve, "a", lambda: 2) == 1
    assert known.of(curve, "b", lambda: 3) == 3
    assert known.of(equal, "a", lambda: 4) == 4, "another object, though equal"


def test_no_more_is_kept_than_was_said_and_what_is_forgotten_is_made_anew() -> None:
    known: Remembered[int] = Remembered(2)
    curves = [(number,) for number in range(3)]
    for curve in curves:
        known.of(curve, "a", lambda curve=curve: curve[0])
    assert known.of(curves[2], "a", lambda: 9) == 2
    assert known.of(curves[0], "a", lambda: 9) == 9
