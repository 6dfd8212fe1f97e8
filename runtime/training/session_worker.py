"""A training worker whose loop is the user's own function; orders are followed between two of its batches."""

from __future__ import annotations

import base64
import importlib
import os
import pickle
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protocol.jobspec import TrainPart
from runtime.moe.checkpoint import partial_folder
from runtime.training.generation import Generation
from runtime.training.group import PeerLost
from runtime.training.own_model import OwnState, OwnTrainer, UnusableModel
from runtime.training.session import ElasticSession, SessionMisused, seed_all
from runtime.training.snapshots import Snapshots
from runtime.training.transition import Standing
from runtime.training.worker import TrainWorker, explain, fault_of

SINGLE_FILE = "model.safetensors"


class SessionWorker(TrainWorker):
    """Runs `train(session)`. `next_step` and `conclude` are called from within it."""

    _trainer: OwnTrainer | None = None
    _done = 0  # number of the last order that was followed
    _computed_s = 0.0  # monotonic time at which the user's code got its first batch of the step

    def run(self) -> None:
        """Call the user's function, which follows orders, then write what it trained."""
        try:
            function = load(self._part)
            seed_all(self._part.seed)
            function(ElasticSession(self, self._part.seed, "cuda" if torch.cuda.is_available() else "cpu"))
            while self.phase != "finished":
                self._end()
        except Exception as error:  # the process must not die silently: whatever it is, the job's owner reads it
            if self._standing is not None:
                self._standing.close()
            self._become("failed", message=_explain(error, self._me))

    # --- called by the session ----------------------------------------------------------------------------------

    def prepared(self, state: OwnState) -> None:
        """The model is made: the worker can join a generation."""
        self._standing = Standing(state, Snapshots(self._me))
        self._become("ready")

    def next_step(self) -> OwnTrainer | None:
        """Follow orders until there is a step to take with others; None once all are taken."""
        while self._trainer is None:
            switch = self._orders.take(after=self._done)
            self._done = switch.number
            self._follow(switch)
        self._computed_s = time.monotonic()
        return self._trainer if self.step < self._part.steps else None

    def conclude(self, trainer: OwnTrainer) -> None:
        """End a step. If a peer is lost, or another generation is due, `next_step` goes on from there."""
        standing, generation = self._members()
        try:
            outcome = trainer.conclude(self._signals(), time.monotonic() - self._computed_s, trainer.work)
            if not self._after_step(standing, generation, outcome):
                self._trainer = None
            return
        except PeerLost as error:
            reason = str(error)
        self._lose(reason)

    # --- what differs from the built-in model -------------------------------------------------------------------

    def _train(self, standing: Standing) -> None:
        assert standing.group is not None
        assert standing.generation is not None
        state: Any = standing.state
        if self._is_fresh:
            state.agree_on_first(standing.group)
        self._trainer = OwnTrainer(self._spec, state, standing.group, standing.generation)

    @property
    def _is_fresh(self) -> bool:
        newest = self._orders.newest
        return self.step == 0 and newest is not None and newest.number == self._done and newest.source.kind == "fresh"

    def _members(self) -> tuple[Standing, Generation]:
        assert self._standing is not None
        assert self._standing.generation is not None
        return self._standing, self._standing.generation

    def _lose(self, reason: str) -> None:
        standing, generation = self._members()
        self._trainer = None
        self._break_off(standing, generation.number, reason)

    def _end(self) -> None:
        """The user's function has returned: write the model, with whoever is there by then."""
        if self._standing is None or self.step < self._part.steps:
            raise SessionMisused(
                f"train returned after {self.step} of {self._part.steps} steps: let `for batch in "
                "session.batches(...)` run to its end"
            )
        try:
            if self.next_step() is None:
                self._finish(*self._members())
            return
        except PeerLost as error:
            reason = str(error)
        self._lose(reason)

    def _finish(self, standing: Standing, generation: Generation) -> None:
        assert standing.group is not None
        output, fault = self._folder / self._part.output, ""
        self._tell("finishing")
        self._writer.wait()
        standing.group.barrier()
        if standing.group.rank == 0:
            fault = fault_of(lambda: save(standing.state.model, output))
            self._writer.discard_unfinished()
        if self._any(fault):
            raise OSError(fault or "another worker could not write the model")
        self._become("finished", step=self.step, output=os.fspath(output))


def load(part: TrainPart) -> Callable[[ElasticSession], None]:
    """The function by its name, or from a pickle that the job's own user made."""
    if part.pickled is not None:
        return pickle.loads(base64.b64decode(part.pickled))
    module, _, name = (part.function or "").partition(":")
    return getattr(importlib.import_module(module), name)


def save(model: nn.Module, output: Path) -> None:
    """Write as Hugging Face models do, else one file of safetensors; renamed when whole. Raises OSError."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    partial = partial_folder(output)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        if hasattr(model, "save_pretrained"):
            model.save_pretrained(partial, state_dict=_apart(model))
        else:
            save_file({name: x.detach().clone() for name, x in model.state_dict().items()}, partial / SINGLE_FILE)
    except SafetensorError as error:
        raise OSError(f"{output}: {error}") from error
    shutil.rmtree(output, ignore_errors=True)
    partial.rename(output)


def _apart(model: nn.Module) -> dict[str, Tensor]:
    """Its tensors out of the one buffer that they share in training; what the model itself ties stays tied."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    state = model.state_dict()
    return {name: copies.setdefault((x.data_ptr(), x.shape), x.detach().clone()) for name, x in state.items()}


def _explain(error: Exception, worker: str) -> str:
    """As for the built-in model; a fault of the user's own code with the line where it happened."""
    if isinstance(error, SessionMisused | UnusableModel):
        return str(error)
    told = explain(error, worker)
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, OSError | MemoryError) or not frames:
        return told
    last = frames[-1]
    return f"{told} ({Path(last.filename).name}, line {last.lineno}, in {last.name})"
