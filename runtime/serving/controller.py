"""Brings a serve job to its assignment, keeps it there, and says so: the loop around `rollout.decide`.

something happened -> decide -> start and load (in the background) -> new table -> gateway -> stop leavers
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from runtime.serving.actors import ModelUnusable
from runtime.serving.demand import Demand, report_progress
from runtime.serving.drift import Drift
from runtime.serving.fleet import ActorGone, Fleet, endpoint_name, first_line
from runtime.serving.job_file import JobFile
from runtime.serving.load_reports import report_loads
from runtime.serving.rollout import Rollout, Up, decide, leave_at_s
from runtime.serving.routing import Address, ExpertId, Routing, table
from runtime.serving.understudies import Understudies
from runtime.site.controller import Actors, Assignment, LeaseKey, Reports, WorkerSlot

log = logging.getLogger(__name__)

WATCH_S = 0.5
PROGRESS_S = 1.0
MAX_FAILED_STARTS = 6
STALL_WAIT_S = 5.0


class ServeController:
    """Implements `runtime.site.controller.JobController` for a served model."""

    def __init__(self, job: str, actors: Actors, reports: Reports, dir: Path) -> None:
        self._job = job
        self._actors = actors
        self._reports = reports
        self._file = JobFile.open(dir)
        self._fleet: Fleet | None = None
        self._understudies: Understudies | None = None
        self._demand: Demand | None = None
        self._drift = Drift()
        self._assignment: Assignment | None = None
        self._since_s = time.monotonic()  # when the newest change was asked for
        self._leave_at_s = math.inf  # Unix time
        self._up: dict[str, Up] = {}
        self._busy: dict[str, tuple[WorkerSlot, asyncio.Task[None]]] = {}  # those that start or load
        self._lost: set[str] = set()
        self._strays = dict(self._file.slots)  # of an earlier life of the site, not yet seen again
        self._table = Routing()
        self._routed: dict[str, int] = {}  # engine -> epoch that it goes by
        self._gateway_engines: tuple[dict[str, Address], dict[str, Address]] | None = None  # and understudies
        self._published = False
        self._reached = -1
        self._loss_since_s: float | None = None
        self._failed_starts = 0
        self._over = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- what the session calls --------------------------------------------------------------------------------

    async def assign(self, assignment: Assignment) -> None:
        """See `JobController.assign`."""
        if self._over or (self._assignment and assignment.revision <= self._assignment.revision):
            return
        first = self._assignment is None
        if self._assignment is None or assignment.deadline_s != self._assignment.deadline_s:
            self._leave_at_s = leave_at_s(assignment.deadline_s, time.time())
        self._assignment, self._since_s = assignment, time.monotonic()
        self._lost &= {slot.worker for slot in assignment.workers}
        self._drift.forget_copies()
        if first:
            assert assignment.spec.serve is not None
            self._fleet = Fleet(self._job, assignment.spec.name, assignment.spec.serve, self._actors, self._file)
            self._understudies = Understudies(self._fleet)
            self._demand = Demand(assignment.spec.serve, time.monotonic())
            self._spawn(self._run())
            self._spawn(report_loads(self._job, self._up, self._fleet, self._reports, self._follow_load))
        for worker in assignment.lost_workers:
            self._forget(worker)
        self._changed.set()

    async def node_gone(self, lease: LeaseKey) -> None:
        """See `JobController.node_gone`."""
        known = [worker.slot for worker in self._up.values()] + [slot for slot, _ in self._busy.values()]
        for slot in {slot.worker: slot for slot in [*known, *self._strays.values()] if slot.lease == lease}.values():
            self._lose(slot, f"its node {lease} is gone")

    async def end(self, cause: str) -> None:
        """See `JobController.end`."""
        await self._finish("cancelled", cause)

    async def detach(self) -> None:
        """See `JobController.detach`."""
        self._over = True
        await self._cancel_tasks()

    # --- the loop ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._open_endpoint()
            await asyncio.gather(self._turn_forever(), self._watch())
        except (ModelUnusable, OSError) as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("job %s", self._job)
            self._fail(f"serving failed: {first_line(error)}")

    async def _turn_forever(self) -> None:
        while not self._over:
            self._changed.clear()
            await self._turn()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._until_pressed_s()):
                    await self._changed.wait()

    async def _turn(self) -> None:
        assignment = self._now
        for slot in assignment.workers:
            self._strays.pop(slot.worker, None)
        rollout = decide(self._drift.beside(assignment.workers), self._up, set(self._busy), self._lost, self._pressed())
        for slot in rollout.start:
            self._reports.worker(self._job, slot, "starting")
            self._begin(slot, self._start(slot))
        for name, experts in rollout.load.items():
            self._begin(self._up[name].slot, self._load(self._up[name].slot, experts))
        if not (rollout.settled or self._published or self._pressed()):
            return  # found again after a restart of the site, the job runs on undisturbed until all of it is seen
        await self._publish(rollout)
        await self._release(rollout)
        if rollout.complete and (self._serves() or not assignment.workers):
            await self._stop_strays()
            self._announce(assignment)
            self._have_understudy()
        elif self._loss_since_s is not None and self._reached == assignment.revision and self._serves():
            self._announce_loss(assignment, self._loss_since_s)

    async def _publish(self, rollout: Rollout) -> None:
        """New table to the engines first, then new engines to the gateway: nobody uses what is not ready."""
        assert self._fleet is not None
        self._published = True
        shards = {name: (self._up[name].address, experts) for name, experts in rollout.route.items()}
        fresh = table(self._table.epoch + 1, shards)
        if (fresh.shards, fresh.experts) != (self._table.shards, self._table.experts):
            self._table = fresh
        engines = [name for name, worker in self._up.items() if worker.slot.role == "engine"]
        engines += [name for name in self._standing_by if name in self._up]
        stale = [name for name in engines if self._routed.get(name) != self._table.epoch]
        await asyncio.gather(*(self._route(name) for name in stale))
        routed = {name for name, epoch in self._routed.items() if epoch == self._table.epoch and name in self._up}
        ready = (
            {name: self._up[name].address for name in rollout.engines if name in routed},
            {name: at for name, at in self._standing_by.items() if name in routed and name in rollout.route},
        )
        if ready != self._gateway_engines:
            try:
                await self._fleet.use_engines(*ready)
                self._gateway_engines = ready
            except ActorGone:
                await self._open_endpoint()
                self._changed.set()

    async def _route(self, engine: str) -> None:
        assert self._fleet is not None
        epoch = self._table.epoch
        try:
            await self._fleet.route(engine, self._table)
            self._routed[engine] = epoch
        except ActorGone as error:
            if engine in self._up:
                self._lose(self._up[engine].slot, str(error))

    async def _release(self, rollout: Rollout) -> None:
        assert self._fleet is not None
        for name in rollout.stop:
            slot = self._up[name].slot if name in self._up else self._busy.get(name, (None,))[0]
            if slot is None:
                continue  # it died meanwhile
            self._forget(name, stop=False)
            await self._fleet.stop(name)
            self._reports.worker(self._job, slot, "left")
            self._changed.set()
        for name, experts in rollout.drop.items():
            with contextlib.suppress(ActorGone):  # the watch finds out by itself
                await self._fleet.drop(name, experts)
                if worker := self._up.get(name):
                    self._up[name] = Up(worker.slot, worker.address, worker.experts - experts)

    async def _stop_strays(self) -> None:
        assert self._fleet is not None
        for name, slot in list(self._strays.items()):
            await self._fleet.stop(name)
            self._reports.worker(self._job, slot, "left")
            self._strays.pop(name, None)

    # --- workers -----------------------------------------------------------------------------------------------

    def _begin(self, slot: WorkerSlot, work: Coroutine[Any, Any, None]) -> None:
        self._busy[slot.worker] = slot, self._spawn(self._tend(slot, work))

    async def _tend(self, slot: WorkerSlot, work: Coroutine[Any, Any, None]) -> None:
        """Run a start or a load; the job fails with its model, and goes on without a worker that could not start."""
        try:
            await work
            self._failed_starts = 0
        except ModelUnusable as error:
            self._fail(str(error))
        except Exception as error:
            log.warning("job %s: worker %s: %s", self._job, slot.worker, error)
            self._failed_starts += 1
            self._lose(slot, first_line(error))
            if self._failed_starts >= MAX_FAILED_STARTS:
                self._fail(f"{self._failed_starts} workers in a row could not start: {first_line(error)}")
        finally:
            if self._busy.get(slot.worker, (slot, None))[1] is asyncio.current_task():
                del self._busy[slot.worker]
            self._changed.set()

    def _follow_load(self, tokens: list[int], rooms: dict[str, int]) -> None:
        """Have spare slots take copies of what has become busy, while nothing else is changing."""
        self._drift.count(tokens)
        is_calm = self._reached == self._now.revision and not self._busy and self._loss_since_s is None
        if is_calm and self._drift.follow(self._now.workers, rooms):
            self._changed.set()

    def _have_understudy(self) -> None:
        if self._understudies is not None and (shard := self._understudies.wanted(self._up)):
            self._spawn(self._prepare(self._understudies, shard))

    async def _prepare(self, understudies: Understudies, shard: str) -> None:
        self._go_on_from(await understudies.prepare(shard))
        self._changed.set()

    def _go_on_from(self, epoch: int) -> None:
        if epoch > self._table.epoch:  # of an engine found again after a restart of the site
            self._table = Routing(epoch)

    async def _start(self, slot: WorkerSlot) -> None:
        assert self._fleet is not None
        worker, epoch = await self._fleet.start(slot)
        self._go_on_from(epoch)
        self._up[slot.worker] = worker
        self._reports.worker(self._job, slot, "running")

    async def _load(self, slot: WorkerSlot, experts: frozenset[ExpertId]) -> None:
        assert self._fleet is not None
        staying = {slot.worker for slot in self._now.workers}
        had = {expert for name, worker in self._up.items() if name in staying for expert in worker.experts}
        self._up[slot.worker] = await self._fleet.load(slot, experts, urgent=not experts <= had)

    def _lose(self, slot: WorkerSlot, detail: str) -> None:
        """A worker died: route around it at once; the scheduler hears of it and plans anew."""
        if slot.worker in self._lost or self._over:
            return
        self._forget(slot.worker)  # and stop it: if it lives on unheard it must not go on working
        self._lost.add(slot.worker)
        self._loss_since_s = time.monotonic()
        self._reports.worker(self._job, slot, "lost", detail)
        self._changed.set()

    def _forget(self, worker: str, stop: bool = True) -> None:
        known = worker in self._up or worker in self._busy or worker in self._strays
        self._up.pop(worker, None)
        self._strays.pop(worker, None)
        self._routed.pop(worker, None)
        if self._understudies is not None:
            self._understudies.forget(worker)
        _, task = self._busy.pop(worker, (None, None))
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        if known and stop and self._fleet is not None:
            self._spawn(self._fleet.stop(worker))

    # --- watching ----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Find dead workers, and say how the job does."""
        assert self._fleet is not None
        reported_s, tokens = time.monotonic(), None
        while not self._over:
            await asyncio.sleep(WATCH_S)
            await asyncio.gather(*(self._check(worker.slot) for worker in list(self._up.values())))
            now_s = time.monotonic()
            if now_s - reported_s < PROGRESS_S:
                continue
            counts = await self._counts()
            if counts is not None:
                rate = max(0.0, counts["tokens"] - (counts["tokens"] if tokens is None else tokens)) / (
                    now_s - reported_s
                )
                assert self._demand is not None
                report_progress(self._job, counts, rate, len(self._up), self._demand, self._reports, now_s)
                tokens = counts["tokens"]
            reported_s = now_s

    async def _check(self, slot: WorkerSlot) -> None:
        assert self._fleet is not None
        try:
            await self._fleet.status(slot.worker)
        except ActorGone as error:
            if slot.worker in self._up:  # else it left while it was being asked
                self._lose(slot, str(error))

    async def _counts(self) -> dict[str, float] | None:
        assert self._fleet is not None
        try:
            counts = await self._fleet.gateway_counts()
            longest_s, _ = await self._fleet.stall(PROGRESS_S * 2)
        except ActorGone as error:
            log.warning("job %s: the endpoint died (%s); it is started again", self._job, error)
            self._gateway_engines = None
            await self._open_endpoint()
            self._changed.set()
            return None
        return {**counts, "stall_max_s": longest_s}

    # --- saying so ---------------------------------------------------------------------------------------------

    async def _open_endpoint(self) -> None:
        assert self._fleet is not None
        self._reports.endpoint(self._job, await self._fleet.open_gateway())

    def _announce(self, assignment: Assignment) -> None:
        if self._reached < assignment.revision:
            self._reached = assignment.revision
            since_s = self._since_s if self._loss_since_s is None else self._loss_since_s
            self._loss_since_s = None
            self._spawn(self._measure(assignment, assignment.cause, since_s))
        elif self._loss_since_s is not None:
            self._announce_loss(assignment, self._loss_since_s)

    def _announce_loss(self, assignment: Assignment, since_s: float) -> None:
        self._loss_since_s = None
        self._spawn(self._measure(assignment, "loss", since_s))

    async def _measure(self, assignment: Assignment, cause: str, since_s: float) -> None:
        """Report `reached` once the streams that stood still move again, with how long they stood."""
        assert self._fleet is not None
        longest_s = await self._fleet.stall_since(since_s, STALL_WAIT_S if assignment.workers else 0.0)
        self._reports.reached(assignment, longest_s, cause=cause)

    def _serves(self) -> bool:
        """Whether requests can be answered: an engine, and a copy of every expert that the assignment has."""
        experts = {expert for slot in self._now.workers for expert in slot.experts}
        return bool(self._gateway_engines and self._gateway_engines[0]) and all(
            self._table.experts.get(expert) for expert in experts
        )

    # --- time and ends -----------------------------------------------------------------------------------------

    @property
    def _standing_by(self) -> dict[str, Address]:
        return self._understudies.ready if self._understudies is not None else {}

    @property
    def _now(self) -> Assignment:
        assert self._assignment is not None
        return self._assignment

    def _pressed(self) -> bool:
        return not self._now.workers or time.time() >= self._leave_at_s

    def _until_pressed_s(self) -> float | None:
        left_s = self._leave_at_s - time.time()
        return left_s if 0 < left_s < math.inf else None

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _fail(self, message: str) -> None:
        if not self._over:
            asyncio.ensure_future(self._finish("failed", message))  # noqa: RUF006 - it cancels all other tasks

    async def _finish(self, outcome: str, message: str) -> None:
        if self._over:
            return
        self._over = True
        await self._cancel_tasks()
        if self._fleet is not None:
            await self._fleet.close_endpoint()
        for worker in [*self._file.slots, endpoint_name(self._job)]:
            await self._actors.stop(worker)
        self._file.path.unlink(missing_ok=True)
        self._reports.ended(self._job, outcome, message)

    async def _cancel_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
