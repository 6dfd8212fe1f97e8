"""`Reports` that are kept in order, for tests to wait on and read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple


class Said(NamedTuple):
    """One report: its name and its arguments by position and name."""

    what: str
    args: tuple[Any, ...]
    named: dict[str, Any]


class Recorder:
    """Implements `Reports`."""

    def __init__(self) -> None:
        self.said: list[Said] = []
        self._changed = asyncio.Event()

    def __getattr__(self, what: str) -> Callable[..., None]:
        if what.startswith("_"):
            raise AttributeError(what)

        def report(*args: Any, **named: Any) -> None:
            self.said.append(Said(what, args, named))
            self._changed.set()

        return report

    def of(self, what: str) -> list[Said]:
        """Every report of a kind."""
        return [said for said in self.said if said.what == what]

    def states(self, worker: str) -> list[str]:
        """What was said of a worker, in order."""
        return [said.args[2] for said in self.of("worker") if said.args[1].worker == worker]

    async def until(self, holds: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """Wait until something holds, and return it."""
        async with asyncio.timeout(limit_s):
            while not (found := holds()):
                self._changed.clear()
                await self._changed.wait()
            return found
