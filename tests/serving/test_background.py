"""Work that may wait gives way to all other, and is done nevertheless."""

from __future__ import annotations

import os
import threading

import pytest

from runtime.serving import background
from runtime.serving.background import Background


def test_every_piece_is_done_in_a_thread_that_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PATIENCE_S", 60.0)
    done: list[tuple[int, int]] = []
    Background().each(lambda item: done.append((item, os.sched_getscheduler(0))), range(5))
    assert done == [(item, os.SCHED_IDLE) for item in range(5)]
    assert os.sched_getscheduler(0) != os.SCHED_IDLE


def test_work_that_gets_no_processor_is_done_by_who_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "PATIENCE_S", 0.05)
    rest_is_done = threading.Event()
    done: list[tuple[int, bool]] = []

    def work(item: int) -> None:
        if item == 0:
            assert rest_is_done.wait(30)  # as a thread that never gets its turn
        done.append((item, threading.current_thread() is threading.main_thread()))
        if item == 4:
            rest_is_done.set()

    Background().each(work, range(5))
    assert done == [(1, True), (2, True), (3, True), (4, True), (0, False)]


def test_what_goes_wrong_is_told() -> None:
    def work(item: int) -> None:
        raise OSError(f"piece {item} is damaged")

    with pytest.raises(OSError, match="piece 0 is damaged"):
        Background().each(work, range(3))
