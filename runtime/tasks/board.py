"""A task job's items as the controller sees them: the ledger, kept in step with what is on disk."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.jobspec import TaskPart
from runtime.site.controller import WorkerSlot
from runtime.tasks.ledger import Ledger
from runtime.tasks.results import Results
from runtime.tasks.work import Outcome, Parameters, Work

RATE_WINDOW_S = 30.0


@dataclass(frozen=True, slots=True)
class Try:
    """One try of an item that a worker is to run."""

    item: int
    attempt: int
    parameters: Parameters


class Board:
    """Hands out items and takes in outcomes. Files are written on a thread, one outcome at a time."""

    def __init__(self, job: str, task: TaskPart, folder: Path) -> None:
        """Blocking. Raises OSError if the output cannot be written, ValueError if it is another job's."""
        self.output = Path(task.output).expanduser().absolute()
        self._task = task
        self._results = Results(job, self.output, folder)
        known = self._results
        self.ledger = Ledger(len(task.array), task.retries, known.done, known.failed, known.tries)
        names = frozenset(name for parameters in task.array for name in parameters)
        command = tuple(task.command) if task.command else None
        self.work = Work(job, str(self.output), command, task.function, task.pickled, names, task.timeout_s)
        self._one_at_a_time = asyncio.Lock()
        self._recent: deque[float] = deque()
        self._began_s = time.monotonic()
        self.changed = asyncio.Event()
        self.over = asyncio.Event()
        self._note_over()
        self.first_error = ""

    def take(self, worker: str) -> Try | None:
        """The next item for a worker, None if none waits."""
        item = self.ledger.take(worker)
        return None if item is None else self._try(item)

    def adopt(self, worker: str, item: int, attempt: int) -> Try | None:
        """Let a worker go on with what it is at since an earlier site process; None if that is of no use."""
        return self._try(item) if self.ledger.adopt(worker, item, attempt) else None

    def _try(self, item: int) -> Try:
        return Try(item, self.ledger.attempt(item), dict(self._task.array[item]))

    def give_back(self, worker: str) -> int | None:
        """The worker is gone; which item waits again."""
        item = self.ledger.give_back(worker)
        self.changed.set()
        return item

    async def take_in(self, slot: WorkerSlot, run: Try, outcome: Outcome) -> None:
        """Keep how a try ended. Raises OSError, e.g. when the disk is full; the worker then still holds the item."""
        async with self._one_at_a_time:
            again = outcome.state == "failed" and run.attempt < self._task.retries
            await asyncio.to_thread(self._keep, slot, run, outcome, again)
            if outcome.state == "done":
                self.ledger.succeed(slot.worker)
            else:
                self.ledger.fail(slot.worker)
                self.first_error = self.first_error or f"item {run.item}: {outcome.error}"
            if not again:
                self._recent.append(time.monotonic())
            self._note_over()
            self.changed.set()

    def _note_over(self) -> None:
        if self.ledger.is_over:
            self.over.set()

    def _keep(self, slot: WorkerSlot, run: Try, outcome: Outcome, again: bool) -> None:
        self._results.keep_output(run.item, outcome.stdout, outcome.stderr)
        if again:
            self._results.keep_failure(run.item, outcome.error)
        else:
            self._results.keep(_record(slot, run, outcome))

    def rate(self) -> float:
        """Items a second, of late."""
        now_s = time.monotonic()
        while self._recent and self._recent[0] < now_s - RATE_WINDOW_S:
            self._recent.popleft()
        return len(self._recent) / max(min(RATE_WINDOW_S, now_s - self._began_s), 1e-3)

    def close(self) -> None:
        """Close the files."""
        self._results.close()


def _record(slot: WorkerSlot, run: Try, outcome: Outcome) -> dict[str, Any]:
    return {
        "item": run.item,
        "parameters": run.parameters,
        "state": outcome.state,
        "value": json.loads(outcome.value_json),
        "exit_status": outcome.exit_status,
        "error": outcome.error,
        "tries": run.attempt + 1,
        "seconds": round(outcome.seconds, 6),
        "worker": slot.worker,
        "node": slot.lease.node,
        "ended_s": round(time.time(), 3),
    }
