"""Writes a worker's share of a checkpoint in the background; rank 0 finishes it once all have written theirs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from torch import Tensor

from runtime.training.checkpoints import (
    Keeping,
    commit,
    discard,
    discard_unfinished,
    folder_of,
    prune,
    write_shard,
)
from runtime.training.generation import DENSE, Generation, Item
from runtime.training.state import Copy


class Writing(IntEnum):
    """What a writer tells the other members at each step's end."""

    IDLE = 0
    BUSY = 1
    WRITTEN = 2
    FAILED = 3
    DUE = 4  # a switch broke one off: begin another


class CheckpointWriter:
    """One worker's. Called from the training thread; file work happens on a thread of its own."""

    def __init__(self, root: str, keeping: Keeping, tell: Callable[..., None]) -> None:
        """`tell(kind, **facts)` reports "checkpoint" (path, step) and "warning" (text)."""
        self._root, self._keeping = root, keeping
        self._tell = tell
        self._thread: threading.Thread | None = None
        self.writing = Writing.IDLE
        self._job: _Job | None = None

    def start(self, copy: Copy, generation: Generation, worker: str) -> None:
        """Begin to write a snapshot's items that this worker owns, and dense state if it is rank 0."""
        rank = generation.workers.index(worker)
        items = [*generation.member(worker).slot.experts, *([DENSE] if rank == 0 else [])]
        self._job = _Job(self._root, copy, rank, len(generation.members), {i: copy.buffers[i] for i in items})
        self.writing = Writing.BUSY
        self._run(self._write, self._job)

    def heard(self, by_rank: tuple[int, ...]) -> bool:
        """What all writers said at a step's end. True if a checkpoint is due now; finishes one that is complete."""
        if Writing.BUSY in by_rank:
            return False
        if Writing.FAILED in by_rank:
            self._settle(self._give_up)
        elif Writing.WRITTEN in by_rank:
            self._settle(self._commit)
        return Writing.DUE in by_rank

    def interrupt(self) -> None:
        """The generation ends: what is half written will be written anew by the next one."""
        if self.writing is not Writing.IDLE:
            self.writing = Writing.DUE

    def wait(self) -> None:
        """Until the background work is done."""
        if self._thread is not None:
            self._thread.join()

    def discard_unfinished(self) -> None:
        """Training is over, and nobody writes any more: what was begun and is not whole is of no use."""
        with contextlib.suppress(Exception):  # the model is there; this is for tidiness
            discard_unfinished(self._root)

    def _settle(self, at_rank_0: Callable[[_Job], None]) -> None:
        self.wait()
        self.writing = Writing.IDLE
        if self._job is not None and self._job.rank == 0:
            self._run(at_rank_0, self._job)

    def _run(self, work: Callable[[_Job], None], job: _Job) -> None:
        before = self._thread

        def after_the_last() -> None:
            if before is not None:
                before.join()
            work(job)

        self._thread = threading.Thread(target=after_the_last, name="checkpoint", daemon=True)
        self._thread.start()

    def _write(self, job: _Job) -> None:
        try:
            write_shard(job.folder, job.rank, job.buffers)
            outcome = Writing.WRITTEN
        except Exception as error:  # every kind of storage has its own
            self._warn(job, error)
            outcome = Writing.FAILED
        if self._job is job and self.writing is Writing.BUSY:
            self.writing = outcome

    def _commit(self, job: _Job) -> None:
        position = job.copy.position
        try:
            commit(job.folder, position.step, position.skipped, job.width)
        except Exception as error:
            self._warn(job, error)
            self._give_up(job)
            return
        self._tell("checkpoint", path=job.folder, step=position.step)
        with contextlib.suppress(Exception):  # what stays too long goes after the next one
            prune(job.folder, self._keeping)

    def _give_up(self, job: _Job) -> None:
        discard(job.folder)

    def _warn(self, job: _Job, error: Exception) -> None:
        self._tell(
            "warning",
            text=f"the checkpoint of step {job.copy.position.step} could not be written to {job.root}: "
            f"{getattr(error, 'strerror', None) or error}. Training goes on and older checkpoints are kept; make room "
            "there, or make it reachable",
        )


@dataclass(frozen=True)
class _Job:
    root: str
    copy: Copy
    rank: int
    width: int
    buffers: Mapping[Item, Tensor]

    @property
    def folder(self) -> str:
        return folder_of(self.root, self.copy.position.step, self.copy.generation)
