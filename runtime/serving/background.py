"""Work that may wait: it leaves the processor to the calls that come meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

REST = 4.0
"""After a piece of work the next one waits so many times as long as that took, while calls come."""


class Background:
    """Pieces of work, one after another, with rests in between where calls come. Priorities cannot do that: a thread of
    a low one keeps the interpreter while others have the processor, and the answers to calls wait for both."""

    def __init__(self, calls: Callable[[], int], rest: Callable[[float], None] = time.sleep) -> None:
        """`calls`: how many have come so far; `rest`: waits for so many seconds."""
        self._calls = calls
        self._rest = rest

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """`work(item)` for every item. Blocks until all are done; raises what one of them raised."""
        seen = self._calls()
        for item in items:
            began_s = time.monotonic()
            work(item)
            calls = self._calls()
            if calls != seen:
                self._rest(REST * (time.monotonic() - began_s))
            seen = calls


def give_back() -> None:
    """Have the C library return memory that was freed to the system: it would keep what lies under something in use."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)
