"""Work that may wait, in a thread that gets the processor only where nothing else wants it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 3.0
"""Where others leave no processor for so long the work goes on beside them."""


class Background:
    """Pieces of work, one after another. A thread of the idle class (`sched(7)`) starts on a processor only when it is
    free and leaves it at once, so that the answer to a call does not wait for it. Only Linux has that class."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "background", initializer=_give_way)

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """`work(item)` for every item. Blocks until all are done; raises what one of them raised."""
        left = deque(items)

        def go_on() -> None:
            with contextlib.suppress(IndexError):
                while True:
                    work(left.popleft())

        done = self._pool.submit(go_on)
        with contextlib.suppress(TimeoutError):
            done.result(PATIENCE_S)
        go_on()
        done.result()


def _give_way() -> None:
    if hasattr(os, "SCHED_IDLE"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def give_back() -> None:
    """Have the C library return memory that was freed to the system: it would keep what lies under something in use."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)
