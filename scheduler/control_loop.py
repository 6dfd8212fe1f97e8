"""The one writer: events in, plan, commit, save, and only then words to agents and sites.

    inbox -> Inventory.apply -> plan -> commit -> Store.save -> Executor calls, answers, subscribers

`turn` does all of it at once for tests and simulation; `run` does the same with the store, and a large plan, on
threads of their own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from scheduler.clock import Clock
from scheduler.commit import commit
from scheduler.domain.changes import Changes, LogRow
from scheduler.domain.events import Event, JobSubmitted, Tick
from scheduler.domain.plan import Plan, Snapshot
from scheduler.domain.reasons import Reason, Refused
from scheduler.executor import Executor
from scheduler.inventory import Inventory
from scheduler.inventory.effects import (
    AskReclaim,
    Effect,
    End,
    Forget,
    Grant,
    Join,
    Leave,
    SendAssignment,
)
from scheduler.lifecycle import IllegalTransition
from scheduler.planning.plan import Replanner
from scheduler.store.port import Store

Planner = Callable[[Snapshot], Plan]

TICK_S = 0.5
"""How often time is noticed when nothing else happens."""

BIG = 500
"""Leases and jobs together from which on a plan is made on a thread, so that streams stay live."""

SUBSCRIBER_ROWS = 2000
"""Rows that a subscriber may lag behind before it is cut off."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Posted:
    """An event in the inbox, and who waits for it."""

    event: Event
    done: asyncio.Future[None] | None = None


class Subscription:
    """New log rows, each after it was stored. Iteration ends when the loop stops, or cuts off a slow reader."""

    def __init__(self, leave: Callable[[Subscription], None]) -> None:
        self._rows: deque[LogRow] = deque()
        self._wake = asyncio.Event()
        self._leave = leave
        self.cut_off = False

    def push(self, rows: tuple[LogRow, ...]) -> None:
        """Hand rows over; never waits."""
        if len(self._rows) + len(rows) > SUBSCRIBER_ROWS:
            self.close()
        else:
            self._rows.extend(rows)
        self._wake.set()

    def close(self) -> None:
        """No more rows after those that are already here."""
        self.cut_off = True
        self._leave(self)
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[LogRow]:
        return self

    async def __anext__(self) -> LogRow:
        while not self._rows:
            if self.cut_off:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self._rows.popleft()


class ControlLoop:
    """See the module. All methods belong to one thread: the event loop's, or the caller's of `turn`."""

    def __init__(
        self,
        inventory: Inventory,
        store: Store,
        executor: Executor,
        clock: Clock,
        planner: Planner | None = None,
    ) -> None:
        self.inventory = inventory
        self._store = store
        self._executor = executor
        self._clock = clock
        self._planner = planner or Replanner()
        self._inbox: deque[_Posted] = deque()
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._effects: deque[Effect] = deque()
        self._subscribers: list[Subscription] = []
        self._unplaced: dict[str, Reason] = {}
        self._planned_version = -1
        self._job_numbers = itertools.count(_next_job_number(inventory))

    # --- what services call ------------------------------------------------------------------------------------

    @property
    def unplaced(self) -> Mapping[str, Reason]:
        """Why a job does not run, or not at its full width, by the newest plan."""
        return MappingProxyType(self._unplaced)

    @property
    def planned_version(self) -> int:
        """Version of the inventory that the newest plan was made of; -1 before the first."""
        return self._planned_version

    def now_s(self) -> float:
        """The loop's time, with which services stamp events."""
        return self._clock.now_s()

    def new_job_id(self) -> str:
        """An id that no job has had; ids sort by age."""
        return f"job-{next(self._job_numbers):06d}"

    def post(self, event: Event) -> None:
        """Put an event in the inbox. What becomes of it shows in the inventory and the log."""
        self._inbox.append(_Posted(event))
        self._wake.set()

    async def apply(self, event: Event) -> None:
        """Put an event in the inbox and wait until it is applied and stored. Raises Refused."""
        done = asyncio.get_running_loop().create_future()
        self._inbox.append(_Posted(event, done))
        self._wake.set()
        await done

    async def submit(self, event: JobSubmitted) -> tuple[str, bool]:
        """The job's id, and whether an earlier request with the same id made it. Durable on return. Raises Refused."""
        await self.apply(event)
        job = self.inventory.requests.get(event.request_id, event.job) if event.request_id else event.job
        return job, job != event.job

    def subscribe(self) -> Subscription:
        """Every log row from now on. Close the subscription when done with it."""
        subscription = Subscription(self._unsubscribe)
        self._subscribers.append(subscription)
        return subscription

    def _unsubscribe(self, subscription: Subscription) -> None:
        if subscription in self._subscribers:
            self._subscribers.remove(subscription)

    # --- the turn ----------------------------------------------------------------------------------------------

    def turn(self, now_s: float, plan: bool = True) -> None:
        """One whole turn on the caller's thread. Raises what the store raises; nothing left then.

        Without `plan` the news are taken in and passed on, and planned for in a later turn: a replay has all that
        happens at one instant planned for at once.
        """
        self.take_in(now_s)
        if plan and self._should_plan():
            self._settle_plan(self._planner(self._snapshot(now_s)), now_s)
        changes = self._take_out()
        try:
            self._save(changes)
        except Exception as error:
            self._not_saved(changes, error)
            raise
        self._saved(changes)

    async def run(self) -> None:
        """Turn after turn until cancelled. A turn that cannot be saved is kept and tried again."""
        try:
            while True:
                await self._wait()
                await self._live_turn()
        finally:
            self._stop()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):  # wait_for may swallow a cancellation
                await self._wake.wait()
        except TimeoutError:
            self.post(Tick(at_s=self._clock.now_s(), cause_id="tick"))
        self._wake.clear()

    async def _live_turn(self) -> None:
        self.take_in(self._clock.now_s())
        if self._should_plan():
            plan = await self._plan(self._snapshot(self._clock.now_s()))
            self.take_in(self._clock.now_s())
            self._settle_plan(plan, self._clock.now_s())
        changes = self._take_out()
        try:
            await asyncio.to_thread(self._save, changes)
        except Exception as error:
            _log.exception("a turn could not be saved; it is tried again")
            self._not_saved(changes, error)
            await asyncio.sleep(TICK_S)
            return
        self._saved(changes)

    async def _plan(self, snapshot: Snapshot) -> Plan:
        if len(snapshot.leases) + len(snapshot.jobs) < BIG:
            return self._planner(snapshot)
        return await asyncio.to_thread(self._planner, snapshot)

    def take_in(self, now_s: float) -> None:
        """The first half of a turn: apply what is in the inbox."""
        self.inventory.advance(now_s)
        while self._inbox:
            posted = self._inbox.popleft()
            error = self._apply(posted.event)
            if posted.done is None or posted.done.done():
                continue
            if error:
                posted.done.set_exception(error)
            else:
                self._waiting.append(posted.done)

    def _apply(self, event: Event) -> Refused | None:
        """One event that goes wrong must not take the others with it."""
        try:
            self.inventory.apply(event)
        except Refused as refused:
            return refused
        except IllegalTransition as fault:
            _log.exception("an event had no effect")
            self.inventory.note("event_failed", str(fault))
            return Refused(Reason("internal", str(fault), "Please report this with the scheduler's log."))
        return None

    def _should_plan(self) -> bool:
        return self.inventory.version != self._planned_version

    def _snapshot(self, now_s: float) -> Snapshot:
        snapshot = self.inventory.snapshot(now_s)
        self._planned_version = snapshot.version
        return snapshot

    def _settle_plan(self, plan: Plan, now_s: float) -> None:
        """Commit a plan. If it changed nothing but the inventory itself, that needs no further plan."""
        as_planned = self.inventory.version == plan.snapshot_version
        committed = commit(plan, self.inventory, now_s)
        if as_planned and not committed.applied:
            self._planned_version = self.inventory.version
        self._note_unplaced({waiting.job: waiting.reason for waiting in plan.unplaced})

    def _note_unplaced(self, unplaced: dict[str, Reason]) -> None:
        for job, reason in sorted(unplaced.items()):
            known = self._unplaced.get(job)
            if known is None or known.code != reason.code:
                self.inventory.note("unplaced", str(reason), job=job, code=reason.code)
        self._unplaced = unplaced

    def _take_out(self) -> Changes:
        self._effects.extend(self.inventory.take_effects())
        return self.inventory.take_changes()

    def _save(self, changes: Changes) -> None:
        if not changes.is_empty:
            self._store.save(changes)

    def _not_saved(self, changes: Changes, error: Exception) -> None:
        self.inventory.untake(changes)
        reason = Reason(
            "store_unavailable",
            f"the scheduler could not save this: {str(error).rstrip('.')}.",
            "Look after its disk or database, then send the request again with the same request id.",
        )
        self._answer(Refused(reason))

    def _saved(self, changes: Changes) -> None:
        while self._effects:
            perform(self._effects.popleft(), self._executor)
        self._answer(None)
        if changes.log:
            for subscription in tuple(self._subscribers):
                subscription.push(changes.log)

    def _answer(self, error: Refused | None) -> None:
        waiting, self._waiting = self._waiting, []
        for done in waiting:
            if done.done():
                continue
            if error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def _stop(self) -> None:
        reason = Reason("stopping", "the scheduler is stopping.", "Send the request again when it is back.")
        self._waiting.extend(posted.done for posted in self._inbox if posted.done)
        self._inbox.clear()
        self._answer(Refused(reason))
        for subscription in tuple(self._subscribers):
            subscription.close()


def perform(effect: Effect, executor: Executor) -> None:
    """Make the executor call that an effect stands for."""
    match effect:
        case Grant(lease):
            executor.grant(lease)
        case Join(lease, site):
            executor.join(lease, site)
        case SendAssignment(job, step, leases, lost_workers):
            executor.assign(job, step, leases, lost_workers)
        case End(job, cause):
            executor.end(job, cause)
        case Leave(lease, cause):
            executor.leave(lease, cause)
        case AskReclaim(lease, grace_s, cause):
            executor.reclaim(lease, grace_s, cause)
        case Forget(key, site):
            executor.forget(key, site)


def _next_job_number(inventory: Inventory) -> int:
    numbers = [int(job.rpartition("-")[2]) for job in inventory.jobs if job.rpartition("-")[2].isdecimal()]
    return max(numbers, default=0) + 1
