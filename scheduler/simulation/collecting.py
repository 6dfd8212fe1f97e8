"""Python's cycle collector, kept out of a replay's way: it looks through a trace's million objects again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (200_000, 50, 100)
"""Allocations before a young collection, and how many of those before older ones. A replay makes hardly any cycles."""


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Inside, what exists already is not looked through, and what is new only seldom."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
