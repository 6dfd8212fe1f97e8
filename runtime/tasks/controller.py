"""Runs one task job: brings its runners to the assignment, and its items to their ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from runtime.site.controller import Actors, Assignment, LeaseKey, Reports, WorkerSlot
from runtime.tasks.board import Board
from runtime.tasks.member import Member

log = logging.getLogger(__name__)

PROGRESS_S = 1.0


class TaskController:
    """Implements `runtime.site.controller.JobController`.

    Items are held by runners. One whose runner leaves waits again, at no cost to its retries; the newest assignment
    decides which runners there are. Below the job's minimum width no runner takes another item.
    """

    def __init__(self, job: str, actors: Actors, reports: Reports, dir: Path) -> None:
        self._job = job
        self._actors = actors
        self._reports = reports
        self._folder = dir
        self._board: Board | None = None
        self._assignment: Assignment | None = None
        self._members: dict[str, Member] = {}
        self._settling: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._member_watches: set[asyncio.Task[None]] = set()
        self._is_over = False

    async def assign(self, assignment: Assignment) -> None:
        """See `JobController.assign`."""
        if self._is_over:
            return
        if self._board is None and not await self._open(assignment):
            return
        self._assignment = assignment
        if self._settling:
            self._settling.cancel()
        wanted = {slot.worker: slot for slot in assignment.workers}
        for worker, member in self._members.items():
            if worker in assignment.lost_workers:
                member.lose("the scheduler knows that it is gone")
            elif worker not in wanted:
                member.leave(assignment.cause, assignment.deadline_s)
        for worker, slot in wanted.items():
            if worker not in self._members:
                self._members[worker] = self._join(slot)
        self._settling = asyncio.create_task(self._settle(assignment))

    async def node_gone(self, lease: LeaseKey) -> None:
        """See `JobController.node_gone`."""
        for member in self._members.values():
            if member.slot.lease == lease:
                member.lose(f"the node of lease {lease} is gone")

    async def end(self, cause: str) -> None:
        """See `JobController.end`."""
        await self._finish("cancelled", cause)

    async def detach(self) -> None:
        """See `JobController.detach`."""
        self._is_over = True
        for task in (self._settling, self._watching, *self._member_watches):
            if task:
                task.cancel()
        await asyncio.gather(*(member.let_go() for member in self._members.values()))

    async def _open(self, assignment: Assignment) -> bool:
        task = assignment.spec.task
        assert task is not None, "the site makes this controller for task jobs only"
        try:
            self._board = await asyncio.to_thread(Board, self._job, task, self._folder)
        except ValueError as error:
            await self._finish("failed", f"task.output: {error}")
            return False
        except OSError as error:
            remedy = "Give task.output as a folder that the site's user can write to, on a disk with room."
            self._reports.refused(assignment, "output_unusable", f"task.output {task.output}: {error}", remedy)
            return False
        self._watching = asyncio.create_task(self._watch(self._board))
        return True

    def _join(self, slot: WorkerSlot) -> Member:
        assert self._board is not None
        member = Member(
            self._job, slot, self._board, self._actors, self._reports, lambda: self._width, lambda: self._is_wide_enough
        )
        task = asyncio.create_task(self._watch_member(member))
        self._member_watches.add(task)
        task.add_done_callback(self._member_watches.discard)
        return member

    @property
    def _width(self) -> int:
        return sum(m.is_up.is_set() and not m.is_leaving and not m.over.is_set() for m in self._members.values())

    @property
    def _is_wide_enough(self) -> bool:
        return self._assignment is not None and self._width >= self._assignment.spec.min_width

    async def _settle(self, assignment: Assignment) -> None:
        """Say when the job runs as assigned: joiners are up, leavers are gone."""
        wanted = {slot.worker for slot in assignment.workers}
        members = list(self._members.values())
        await asyncio.gather(*(m.over.wait() for m in members if m.slot.worker not in wanted))
        joining = [m for m in members if m.slot.worker in wanted]
        await asyncio.gather(*(_first(m.is_up, m.over) for m in joining))
        if all(m.is_up.is_set() for m in joining):
            self._reports.reached(assignment, stall_s=0.0)

    async def _watch_member(self, member: Member) -> None:
        """What to do when a runner is gone."""
        await member.over.wait()
        self._members.pop(member.slot.worker, None)
        assignment = self._assignment
        if not member.was_lost or self._is_over or assignment is None:
            return
        if member.start_error and not self._members:
            self._reports.refused(assignment, "no_worker_started", member.start_error, "See the site's log.")
        elif self._width >= assignment.spec.min_width:
            self._reports.reached(assignment, stall_s=0.0, cause="loss")

    async def _watch(self, board: Board) -> None:
        """Say how far the job is; end it when every item has ended."""
        said = -1
        while not board.ledger.is_over:
            if said != board.ledger.finished or self._width:
                said = board.ledger.finished
                self._say_progress(board)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(board.over.wait(), PROGRESS_S)
        self._say_progress(board)
        failed, total = board.ledger.failed, board.ledger.total
        if failed:
            await self._finish(
                "failed", f"{failed} of {total} items failed; {board.first_error or 'see results.jsonl'}"
            )
        else:
            await self._finish("done", f"{total} items done")

    def _say_progress(self, board: Board) -> None:
        failed = {"items_failed": float(board.ledger.failed)}
        self._reports.progress(
            self._job, board.ledger.finished, board.ledger.total, board.rate(), "items", self._width, metrics=failed
        )

    async def _finish(self, outcome: str, message: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        if self._settling:
            self._settling.cancel()
        members = list(self._members.values())
        for member in members:
            member.finish(message)
        await asyncio.gather(*(member.over.wait() for member in members))
        if self._watching and self._watching is not asyncio.current_task():
            self._watching.cancel()
        output = str(self._board.output) if self._board else ""
        if self._board:
            self._board.close()
        self._reports.ended(self._job, outcome, message, output)


async def _first(*events: asyncio.Event) -> None:
    """Wait until one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
