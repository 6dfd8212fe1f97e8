"""A training worker: one thread that follows orders, takes steps, and tells what happens.

It needs nobody to go on training. It stops at a step boundary when any member has been ordered to a newer switch,
and whenever a peer is lost; then it waits for the next order.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from protocol.jobspec import JobSpec
from protocol.models import ModelConfig
from runtime.moe.checkpoint import (
    dense_tensors,
    expert_tensors,
    finish_folder,
    partial_folder,
    read_config,
    write_shard,
)
from runtime.site.controller import WorkerSlot
from runtime.training.checkpoint_writer import CheckpointWriter, Writing
from runtime.training.checkpoints import keeping_of, root_of
from runtime.training.generation import DENSE, Generation, Holding, Switch
from runtime.training.group import PeerLost
from runtime.training.memory import OutOfMemory, advise_state, free_bytes, is_lack, release
from runtime.training.orders import Orders
from runtime.training.pulse import Pulse
from runtime.training.snapshots import Snapshots
from runtime.training.sources import DataError, keep_tokenizer_files, read_tokenizer
from runtime.training.state import Copy, TrainState
from runtime.training.text import Batches, load_corpus
from runtime.training.trainer import Outcome, Signals, Trainer
from runtime.training.transition import Standing, enter

Phase = Literal["preparing", "ready", "training", "broken", "left", "parked", "finished", "failed"]


class TrainWorker:
    """Owned by one thread, which calls `run`. `Orders` and `Pulse` are its only doors to others."""

    def __init__(self, slot: WorkerSlot, spec: JobSpec, folder: Path, orders: Orders, pulse: Pulse) -> None:
        """`folder` is the job's own: its data and checkpoints lie there, shared by all of its workers."""
        assert spec.train is not None
        self._spec, self._part, self._slot, self._folder = spec, spec.train, slot, folder
        self._me = slot.worker
        self._orders, self._tell = orders, pulse.tell
        self._writer = CheckpointWriter(root_of(self._part, folder), keeping_of(self._part), pulse.tell)
        self._standing: Standing | None = None
        self._batches: Batches | None = None
        self._held_out: Batches | None = None
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._boundary_s = 0.0  # Unix time of the last step's end
        self._since_switch = 0  # steps taken in this generation
        self.phase: Phase = "preparing"

    # --- what control calls read --------------------------------------------------------------------------------

    @property
    def generation(self) -> Generation | None:
        """The generation whose state it has."""
        return self._standing.generation if self._standing else None

    @property
    def step(self) -> int:
        """Steps taken."""
        return self._standing.state.position.step if self._standing else 0

    def holdings(self) -> list[Holding]:
        """State in memory that a recovery can start from. Meaningful while the worker does not train."""
        standing = self._standing
        if standing is None:
            return []
        held = standing.snapshots.holdings()
        if standing.has_state and standing.generation is not None:
            items = frozenset((DENSE, *standing.state.experts))
            held.append(Holding("live", standing.state.position.step, standing.generation.number, items))
        return held

    # --- the thread -------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Prepare, then follow orders for ever. Returns after a fault of its own, which it has told."""
        try:
            self._prepare()
            self._become("ready")
            done = 0
            while True:
                switch = self._orders.take(after=done)
                done = switch.number
                self._follow(switch)
        except Exception as error:  # the process must not die silently: whatever it is, the job's owner reads it
            if self._standing is not None:
                self._standing.close()
            self._become("failed", message=self._explain(error))

    def _explain(self, error: Exception) -> str:
        told, model = explain(error, self._me), self._part.model
        if isinstance(error, OutOfMemory) and model is not None and "would fit" not in told:
            release(error)
            held = self._standing.state.held_bytes if self._standing else 0
            return f"{told}: {advise_state(model, free_bytes(self._device) + held)}"
        return told

    def _prepare(self) -> None:
        part, data = self._part, self._folder / "data"
        assert part.model is not None
        known = read_tokenizer(part.tokenizer, part.model.vocab_size) if part.tokenizer else ""
        corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, data, known, self._warn)
        self._batches = Batches(corpus, part.seed, part.sequence_length)
        if part.eval_data is not None:
            vocab_size, known = part.model.vocab_size, corpus.tokenizer_json
            held_out = load_corpus(part.eval_data, vocab_size, part.sequence_length, data / "eval", known, self._warn)
            self._held_out = Batches(held_out, part.seed, part.sequence_length)
        if part.start is not None:
            check_start(Path(part.start), part.model)
        state = TrainState(part.model, self._device, Path(part.start) if part.start else None)
        self._standing = Standing(state, Snapshots(self._me))

    def _warn(self, text: str) -> None:
        self._tell("warning", text=text)

    def _follow(self, switch: Switch) -> None:
        standing = self._standing
        assert standing is not None
        try:
            self._enter(switch, standing)
            if standing.group is None:
                return
            if switch.then == "park":
                self._park(standing)
            else:
                self._train(standing)
        except PeerLost as error:
            reason = str(error)
        else:
            return
        # outside the handler: its traceback would keep the group, and so its connections, alive
        self._break_off(standing, switch.number, reason)

    def _break_off(self, standing: Standing, number: int, reason: str) -> None:
        standing.close()
        self._writer.interrupt()
        self._become("broken", step=self.step, number=number, reason=reason, boundary_s=self._boundary_s)

    def _enter(self, switch: Switch, standing: Standing) -> None:
        stopped_s, had_state = self._boundary_s, standing.has_state
        entry = enter(switch, self._me, standing, self._part.seed, self._slot.address, self._orders)
        self._since_switch = 0
        facts = {"number": switch.number, "step": self.step, "bytes": entry.bytes_received}
        facts["moving_s"] = entry.moving_s
        if not entry.is_member:
            self._become("left", **facts)
            return
        self.phase = "training"
        self._tell("switched", stopped_s=stopped_s if had_state else 0.0, resumed_s=time.time(), **facts)

    def _train(self, standing: Standing) -> None:
        generation, group = standing.generation, standing.group
        assert generation is not None
        assert group is not None
        assert self._batches is not None
        trainer = Trainer(self._spec, standing.state, self._batches, group, generation)
        while self.step < self._part.steps:
            outcome = trainer.step(self._signals())
            self._evaluate(trainer, generation)
            if not self._after_step(standing, generation, outcome):
                return
        self._finish(standing, generation)

    def _evaluate(self, trainer: Trainer, generation: Generation) -> None:
        if self._held_out is None or self._part.eval_every is None or self.step % self._part.eval_every:
            return
        loss = trainer.evaluate(self._held_out, self._part.eval_samples)
        if generation.workers[0] == self._me:
            self._tell("evaluated", step=self.step, loss=loss)

    def _signals(self) -> Signals:
        return Signals(self._orders.pending, int(self._writer.writing))

    def _after_step(self, standing: Standing, generation: Generation, outcome: Outcome) -> bool:
        """What follows every step. False if the generation ends here, for a newer one. Raises `PeerLost`."""
        self._boundary_s = time.time()
        self._since_switch += 1
        standing.snapshots.settle()
        if generation.workers[0] == self._me:
            self._tell_step(outcome)
            if outcome.speeds is not None:
                self._tell("speeds", speeds=dict(zip(generation.workers, outcome.speeds, strict=True)))
        if self._orders.is_cancelled(generation.number):
            raise PeerLost("the controller knows that a peer is lost")
        self._at_boundary(standing, generation, outcome)
        if max(signal.pending for signal in outcome.signals) > generation.number:
            self._writer.interrupt()
            return False
        return True

    def _at_boundary(self, standing: Standing, generation: Generation, outcome: Outcome) -> None:
        by_rank = tuple(signal.checkpoint for signal in outcome.signals)
        is_due = self._writer.heard(by_rank)
        if self.step % self._part.checkpoint_every == 0:
            is_due |= Writing.BUSY not in by_rank
            if not is_due and generation.workers[0] == self._me:
                self._warn(f"the checkpoint of step {self.step} is left out: an earlier one is still being written")
        is_due &= self.step < self._part.steps  # the model itself is written then
        if is_due or self._since_switch == 1 or self.step % self._part.snapshot_every == 0:
            copy = self._snapshot(standing, generation)
            if is_due:
                self._writer.start(copy, generation, self._me)

    def _snapshot(self, standing: Standing, generation: Generation) -> Copy:
        assert standing.group is not None
        return standing.snapshots.take(standing.state, standing.group, generation)

    def _tell_step(self, outcome: Outcome) -> None:
        self._tell(
            "step",
            step=outcome.step,
            loss=outcome.loss if not outcome.is_skipped else None,
            gradient_norm=outcome.gradient_norm if not outcome.is_skipped else None,
            at_s=self._boundary_s,
            since_switch=self._since_switch,
            compute_s=list(outcome.compute_s),
            grains=list(outcome.grains),
        )

    def _become(self, phase: Phase, **facts: Any) -> None:
        self.phase = phase
        self._tell(phase, **facts)

    def _park(self, standing: Standing) -> None:
        """Write a checkpoint, keep everything in memory, and wait for the next order."""
        generation, group = standing.generation, standing.group
        assert generation is not None
        assert group is not None
        self._writer.start(self._snapshot(standing, generation), generation, self._me)
        self._writer.wait()
        told = group.all_gather(torch.tensor([int(self._writer.writing)], device=standing.state.device))
        self._writer.heard(tuple(told.flatten().tolist()))
        self._writer.wait()
        group.barrier()
        standing.snapshots.settle()
        self._become("parked", step=self.step, number=generation.number)

    def _finish(self, standing: Standing, generation: Generation) -> None:
        """Write the model: every member its own experts, rank 0 what is dense, and the folder's name at the end."""
        output, group, state = self._folder / self._part.output, standing.group, standing.state
        assert group is not None
        assert self._batches is not None
        rank, width = group.rank, group.size
        self._tell("finishing")
        self._writer.wait()
        if rank == 0:
            shutil.rmtree(partial_folder(output), ignore_errors=True)
        group.barrier()
        fault = fault_of(lambda: write_shard(output, rank, width, self._share_of_model(state, rank)))
        is_whole = not self._any(fault)
        if rank == 0 and is_whole:
            tokenizer = self._batches.corpus.tokenizer_json
            fault = fault_of(lambda: finish_folder(output, state.config, tokenizer))
            if not fault and self._part.tokenizer:
                fault = fault_of(lambda: keep_tokenizer_files(self._part.tokenizer, output))
        if rank == 0:
            self._writer.discard_unfinished()  # before anyone says that it is finished, which ends all
        if self._any(fault) or fault:
            raise OSError(fault or "another worker could not write its part of the model")
        self._become("finished", step=self.step, output=os.fspath(output))

    def _share_of_model(self, state: TrainState, rank: int) -> dict[str, torch.Tensor]:
        dense = dense_tensors(state.model) if rank == 0 else {}
        return dense | expert_tensors(state.config, state.weights())

    def _any(self, fault: str) -> bool:
        assert self._standing is not None
        assert self._standing.group is not None
        told = torch.tensor([float(bool(fault))], device=self._standing.state.device)
        self._standing.group.all_reduce(told)
        return bool(told.item())


def check_start(folder: Path, model: ModelConfig) -> None:
    """Raises `DataError` if the model there has another architecture."""
    there = read_config(folder)
    other = [name for name in type(model).model_fields if getattr(there, name) != getattr(model, name)]
    if other:
        told = ", ".join(f"{name} {getattr(there, name)!r} instead of {getattr(model, name)!r}" for name in other)
        raise DataError(f"train.start: {folder} is a model with {told}: give its architecture under train.model")


def fault_of(write: Callable[[], Any]) -> str:
    """What a user reads if the disk does not take it, "" if it does."""
    try:
        write()
    except OSError as error:
        return f"the model cannot be written: {error.strerror or error} ({error.filename or ''})"
    return ""


def explain(error: Exception, worker: str) -> str:
    """What a user reads when a worker gives up."""
    if isinstance(error, DataError):
        return str(error)
    if isinstance(error, OutOfMemory):
        return f"worker {worker} ran out of memory: {error}"
    if is_lack(error):
        return f"worker {worker} ran out of memory: lower global_batch or the model's sizes, or raise width.min"
    if isinstance(error, OSError):
        return str(error)
    return f"worker {worker} failed: {type(error).__name__}: {error}"
