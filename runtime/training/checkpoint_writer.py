"""Writes a worker's share of a checkpoint in the background; rank 0 finishes it once all have written theirs."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from torch import Tensor

from runtime.training.checkpoints import commit, discard_unfinished, partial_of, write_shard
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

    def __init__(self, root: Path, tell: Callable[..., None]) -> None:
        """`tell(kind, **facts)` reports "checkpoint" (path, step) and "warning" (text)."""
        self._root = root
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
            write_shard(job.partial, job.rank, job.buffers)
            outcome = Writing.WRITTEN
        except OSError as error:
            self._warn(job, error)
            outcome = Writing.FAILED
        if self._job is job and self.writing is Writing.BUSY:
            self.writing = outcome

    def _commit(self, job: _Job) -> None:
        position = job.copy.position
        try:
            path = commit(job.root, job.partial, position.step, position.skipped, job.width)
            self._tell("checkpoint", path=str(path), step=position.step)
        except OSError as error:
            self._warn(job, error)
            self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        shutil.rmtree(job.partial, ignore_errors=True)

    def _warn(self, job: _Job, error: OSError) -> None:
        self._tell(
            "warning",
            text=f"the checkpoint of step {job.copy.position.step} could not be written to {job.root}: "
            f"{error.strerror or error}. Training goes on and older checkpoints are kept; make room on that disk",
        )


@dataclass(frozen=True)
class _Job:
    root: Path
    copy: Copy
    rank: int
    width: int
    buffers: Mapping[Item, Tensor]

    @property
    def partial(self) -> Path:
        return partial_of(self.root, self.copy.position.step, self.copy.generation)
