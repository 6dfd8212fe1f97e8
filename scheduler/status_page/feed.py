"""Keeps the page's state up to date and tells every open page what changed, at most once a second."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scheduler.clock import Clock
from scheduler.domain.changes import LogRow
from scheduler.domain.cluster import LeaseKey, ReclaimRecord
from scheduler.domain.jobs import Job
from scheduler.status_page import job_view, view
from scheduler.status_page.capacity import DeviceUse, Facts, total_use, use_by_lease
from scheduler.status_page.history import History, Mark, Sample
from scheduler.status_page.traces import Traces

if TYPE_CHECKING:
    from scheduler.control_loop import ControlLoop, Subscription

PERIOD_S = 1.0
BOOKS_PERIOD_S = 5.0
MAX_EVENTS = 200

_log = logging.getLogger(__name__)


class Feed:
    """The newest state as JSON text by section. Without a viewer only history and curves are kept up."""

    def __init__(self, loop: ControlLoop, clock: Clock, recent: Iterable[LogRow] = ()) -> None:
        self._loop = loop
        self._clock = clock
        self.history = History()
        self.traces = Traces()
        self.events: deque[LogRow] = deque(recent, maxlen=MAX_EVENTS)
        self.now_s = clock.now_s()
        self.sections: dict[str, str] = {}
        self.jobs: dict[str, str] = {}
        self._viewers = 0
        self._refreshed = asyncio.Event()
        self._last_reclaim: ReclaimRecord | None = _last(loop.inventory.reclaims)
        self._uses_by_lease: Mapping[LeaseKey, DeviceUse] = {}
        self._uses_version = -1
        self._structure: dict[str, str] = {}
        self._structure_version = -1
        self._books = view.Books()
        self._books_s = -BOOKS_PERIOD_S

    async def run(self, rows: Subscription) -> None:
        """Sample once a second and follow the event log, from `rows` on, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_log(rows))
            tasks.create_task(self._sample_for_ever())

    async def _follow_log(self, rows: Subscription) -> None:
        while True:
            with contextlib.closing(rows):
                async for row in rows:
                    self.events.append(row)
            await asyncio.sleep(PERIOD_S)  # cut off for being slow: subscribe anew
            rows = self._loop.subscribe()

    async def _sample_for_ever(self) -> None:
        while True:
            try:
                self.sample()
            except Exception:  # the page may be wrong for a second, the scheduler goes on
                _log.exception("the status page could not read the inventory; it tries again in %g s", PERIOD_S)
            await asyncio.sleep(PERIOD_S)

    def sample(self) -> None:
        """Add to history and curves; with viewers, bring the sections up to date and wake them."""
        self.now_s = self._clock.now_s()
        facts: Facts = self._loop.inventory
        use = total_use(self._uses(facts))
        self.history.add(Sample(self.now_s, use.useful, use.rescale, use.idle, self._new_reclaims(facts)))
        self.traces.add(self.now_s, job_view.shown_jobs(facts.jobs.values()))
        if self._viewers:
            self._refresh(facts)
        refreshed, self._refreshed = self._refreshed, asyncio.Event()
        refreshed.set()

    def _new_reclaims(self, facts: Facts) -> int:
        count = 0
        for record in reversed(facts.reclaims):
            if record is self._last_reclaim:
                break
            count += 1
        self._last_reclaim = _last(facts.reclaims)
        return count

    def refresh(self) -> None:
        """Bring the sections up to date now, for a viewer who has just come; with others there they are."""
        if self._viewers > 1:
            return
        self._refresh(self._loop.inventory)

    def _uses(self, facts: Facts) -> Mapping[LeaseKey, DeviceUse]:
        if self._uses_version != facts.version:
            self._uses_by_lease, self._uses_version = use_by_lease(facts), facts.version
        return self._uses_by_lease

    def _refresh(self, facts: Facts) -> None:
        if self.now_s - self._books_s >= BOOKS_PERIOD_S:
            self._books, self._books_s = view.books(facts.accounts.values()), self.now_s
        jobs = job_view.shown_jobs(facts.jobs.values())
        self.jobs = {job.id: to_json(job_view.job_view(job, self.traces)) for job in jobs}
        if self._structure_version != facts.version:
            self._structure, self._structure_version = _texts(self._structural(facts, jobs)), facts.version
        moving = {
            "totals": view.totals(facts, self._uses(facts), self._books),
            "job_order": [job.id for job in jobs],
            "job_counts": job_view.job_counts(facts.jobs.values()),
            "unplaced": job_view.unplaced(facts.jobs, self._loop.unplaced),
        }
        self.sections = {**self._structure, **_texts(moving)}

    def _structural(self, facts: Facts, jobs: Iterable[Job]) -> dict[str, object]:
        """What has an entry for each node, and only changes with the inventory's version."""
        nodes = view.ordered_nodes(facts)
        leases = {lease.key.node: lease for lease in facts.leases.values() if lease.is_live}
        return {
            "sites": view.sites(facts, nodes),
            "map": view.node_map(nodes, leases, self._uses(facts)),
            "cohorts": view.cohorts(nodes, leases),
            "placement": view.placement(jobs, nodes),
        }

    async def messages(self) -> AsyncIterator[str]:
        """The whole state, then what changed, once a second. A slow reader gets fewer and larger messages."""
        viewer = Viewer()
        self._viewers += 1
        try:
            self.refresh()
            while True:
                refreshed = self._refreshed
                yield viewer.update(self)
                await refreshed.wait()
        finally:
            self._viewers -= 1


def _last(records: Sequence[ReclaimRecord]) -> ReclaimRecord | None:
    return records[-1] if records else None


class Viewer:
    """What one open page has been given."""

    def __init__(self) -> None:
        self._sections: dict[str, str] = {}
        self._jobs: dict[str, str] = {}
        self._history: Mark | None = None
        self._sequence = -1

    def update(self, feed: Feed) -> str:
        """JSON of everything that the page lacks: for a new one, of the whole state."""
        parts = [f'"now":{feed.now_s:.3f}']
        parts += [f'"{name}":{text}' for name, text in _changed(feed.sections, self._sections)]
        jobs = [f"{json.dumps(job)}:{text}" for job, text in _changed(feed.jobs, self._jobs)]
        if jobs or not self._sections:
            parts.append(f'"jobs":{{{",".join(jobs)}}}')
        rows = feed.history.rows_after(self._history)
        if rows:
            parts.append(f'"history":{to_json(rows)}')
        events = [row for row in feed.events if row.sequence > self._sequence]
        if events or not self._sections:
            parts.append(f'"events":{to_json(events)}')
        self._remember(feed, events)
        return f"{{{','.join(parts)}}}"

    def _remember(self, feed: Feed, events: list[LogRow]) -> None:
        self._sections = feed.sections
        self._jobs = feed.jobs
        self._history = feed.history.mark
        self._sequence = events[-1].sequence if events else self._sequence


def _texts(sections: Mapping[str, object]) -> dict[str, str]:
    return {name: to_json(section) for name, section in sections.items()}


def _changed(new: Mapping[str, str], old: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in new.items() if old.get(name) != text)


def to_json(value: object) -> str:
    """Compact JSON of dataclasses, lists, dicts and plain values. Raises ValueError for infinities and NaN."""
    return json.dumps(value, default=_fields, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def _fields(value: Any) -> dict[str, object]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
