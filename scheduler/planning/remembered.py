"""Results of pure functions, remembered by the very object that they were made of.

Jobs' curves are tuples that live from plan to plan, and are replaced when something is measured. To compare such
tuples, or to hash them, takes about as long as what is saved; whether it is the same object is known at once. The
object is kept with its result, so that no other can take its place in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Remembered(Generic[Result]):
    """At most so many results; all are forgotten when there are more. Nothing but speed depends on it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: dict[tuple[int, object], tuple[object, Result]] = {}

    def of(self, made_of: tuple[object, ...], how: object, make: Callable[[], Result]) -> Result:
        """What `make` gives for an object and a way `how` to look at it, both immutable."""
        known = self._known.get((id(made_of), how))
        if known is not None and known[0] is made_of:
            return known[1]
        result = make()
        if len(self._known) >= self._most:
            self._known.clear()
        self._known[id(made_of), how] = made_of, result
        return result
