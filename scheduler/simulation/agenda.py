"""What happens later on a manual clock, in an order that is always the same."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from scheduler.clock import Clock
from scheduler.domain import events


@dataclass(order=True, slots=True)
class _Due:
    at_s: float
    number: int
    act: Callable[[], None] = field(compare=False)
    about: object = field(default=None, compare=False)  # several waits for one thing can be called off together


class Agenda:
    """Things to do, by time and then in the order in which they were put down. It also numbers and dates events."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due: list[_Due] = []
        self._about: dict[object, list[_Due]] = {}
        self._number = 0

    @property
    def now_s(self) -> float:
        """The clock's time."""
        return self._clock.now_s()

    def next_s(self) -> float | None:
        """When the next thing is due; None if there is none."""
        while self._due and self._due[0].act is _nothing:
            heapq.heappop(self._due)
        return self._due[0].at_s if self._due else None

    def play(self, now_s: float) -> None:
        """Do everything that is due."""
        while self._due and self._due[0].at_s <= now_s:
            heapq.heappop(self._due).act()

    def later(self, delay_s: float, act: Callable[[], None], about: object) -> None:
        """Put something down."""
        self._number += 1
        due = _Due(self.now_s + delay_s, self._number, act, about)
        heapq.heappush(self._due, due)
        waits = [
            other for other in self._about.get(about, ()) if other.at_s >= self.now_s and other.act is not _nothing
        ]
        self._about[about] = [*waits, due]

    def call_off(self, about: object) -> None:
        """Nothing that waits for this happens."""
        for due in self._about.pop(about, ()):
            due.act = _nothing

    def event(self, kind: type[events.Event], /, **fields: object) -> events.Event:
        """An event that happens now."""
        self._number += 1
        return kind(at_s=self.now_s, cause_id=f"twin-{self._number}", **fields)


def _nothing() -> None:
    """What was called off."""
