"""A `Reports` that remembers, and lets a test wait for something to be said."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from runtime.site.controller import Assignment, WorkerSlot


@dataclass
class Recorder:
    """Everything that a controller said, in order."""

    said: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def _say(self, kind: str, **facts: Any) -> None:
        self.said.append((kind, facts))
        self._changed.set()

    def reached(
        self, assignment: Assignment, stall_s: float, bytes_moved: int = 0, at_step: int = 0, cause: str = ""
    ) -> None:
        self._say(
            "reached",
            revision=assignment.revision,
            width=len(assignment.workers),
            stall_s=stall_s,
            bytes_moved=bytes_moved,
            at_step=at_step,
            cause=cause,
        )

    def refused(self, assignment: Assignment, code: str, message: str, remedy: str) -> None:
        self._say("refused", revision=assignment.revision, code=code, message=message, remedy=remedy)

    def worker(self, job: str, slot: WorkerSlot, state: str, detail: str = "") -> None:
        self._say("worker", worker=slot.worker, state=state, detail=detail)

    def progress(
        self,
        job: str,
        step: int,
        total: int,
        rate: float,
        rate_unit: str,
        width: int,
        loss: float = 0.0,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self._say("progress", step=step, total=total, rate=rate, unit=rate_unit, width=width, loss=loss)

    def work_lost(self, job: str, steps: int, seconds: float, cause: str) -> None:
        self._say("work_lost", steps=steps, seconds=seconds, cause=cause)

    def ended(self, job: str, outcome: str, message: str = "", output: str = "") -> None:
        self._say("ended", outcome=outcome, message=message, output=output)

    def endpoint(self, job: str, url: str) -> None:
        self._say("endpoint", url=url)

    def log(self, job: str, worker: str, lines: list[str]) -> None:
        self._say("log", worker=worker, lines=lines)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [facts for said, facts in self.said if said == kind]

    async def until(
        self, kind: str, is_it: Callable[[dict[str, Any]], bool] = lambda _: True, limit_s: float = 120
    ) -> dict:
        """The first saying of this kind that `is_it`, past or to come. A job that ended otherwise fails the test."""
        async with asyncio.timeout(limit_s):
            while True:
                for facts in self.all(kind):
                    if is_it(facts):
                        return facts
                for facts in self.all("ended"):
                    raise AssertionError(f"the job ended before {kind}: {facts}; {self.all('log')}")
                self._changed.clear()
                await self._changed.wait()
