"""What a function of the user's own trains with: see `fallow.ElasticSession`, whose methods these are.

A batch is a grain (`runtime.training.grains`): the same samples at any width, drawn by (seed, step) alone, with the
random generators set by (seed, step, grain). Switches happen between two batches, inside the user's own loop.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from runtime.training.own_model import OwnState, OwnTrainer

if TYPE_CHECKING:
    from runtime.training.session_worker import SessionWorker


class SessionMisused(RuntimeError):
    """Calls that do not fit together; the message says which should have been made."""


class ElasticSession:
    """One worker's view of its job. Lives on the worker's training thread."""

    def __init__(self, worker: SessionWorker, seed: int, device: str) -> None:
        self.device = device
        self._worker, self._seed = worker, seed
        self._state: OwnState | None = None
        self._trainer: OwnTrainer | None = None
        self._grain: int | None = None  # whose loss is still to come

    @property
    def steps_taken(self) -> int:
        """Steps taken since the job's beginning, on whatever workers."""
        return self._state.position.step if self._state else 0

    def model(self, module: nn.Module) -> nn.Module:
        """See `fallow.ElasticSession.model`."""
        if self._state is not None:
            raise SessionMisused("session.model was called twice: put everything that is trained into one module")
        self._state = OwnState(module, self.device)
        return self._state.model

    def batches(self, dataset: Any, collate: Callable[[list[Any]], Any] = default_collate) -> Iterator[Any]:
        """See `fallow.ElasticSession.batches`."""
        if self._state is None:
            raise SessionMisused("call session.model before session.batches")
        if not len(dataset):
            raise SessionMisused("session.batches: the dataset is empty")
        order = Order(len(dataset), self._seed)
        self._worker.prepared(self._state)
        while (trainer := self._worker.next_step()) is not None:
            self._trainer = trainer
            trainer.begin()
            for grain in trainer.grains:
                seed_all(self._seed, self.steps_taken, grain)
                first = self.steps_taken * trainer.global_batch
                samples = [dataset[order.index(first + n)] for n in trainer.samples(grain)]
                self._grain = grain
                yield to_device(collate(samples), self.device)
                if self._grain is not None:
                    raise SessionMisused("call session.step(loss) once for each batch")
            self._worker.conclude(trainer)

    def step(self, loss: Tensor) -> None:
        """See `fallow.ElasticSession.step`."""
        if self._trainer is None or self._grain is None:
            raise SessionMisused("session.step belongs inside `for batch in session.batches(...)`, once for each batch")
        self._trainer.add(self._grain, loss)
        self._grain = None


class Order:
    """Which sample of a dataset comes at which place of the run: every epoch in an order of its own."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._seed = size, seed
        self._epoch, self._places = -1, np.empty(0, dtype=np.int64)

    def index(self, number: int) -> int:
        """The sample that comes `number`-th (from 0)."""
        epoch, place = divmod(number, self._size)
        if epoch != self._epoch:
            self._epoch = epoch
            self._places = np.random.default_rng([self._seed, epoch]).permutation(self._size)
        return int(self._places[place])


def seed_all(*key: int) -> None:
    """Set every random generator that a model's code may use, by a key."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "big")
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number >> 1)


def to_device(batch: Any, device: str) -> Any:
    """Every tensor of a batch there; mappings, lists and tuples are looked into."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(part, device) for part in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch
