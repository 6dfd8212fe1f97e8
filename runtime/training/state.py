"""What a training worker holds of the model: dense state, its experts, and how far training is.

A `Copy` is such state apart from the live buffers: a snapshot, what a checkpoint gives, or what arrives in a switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe.checkpoint import ModelFolder
from runtime.moe.experts import ExpertId, ExpertWeights
from runtime.moe.model import MoeModel, initial_expert, initialise_dense
from runtime.training.flat import DensePiece, ExpertPiece, Flat, expert_buffer
from runtime.training.generation import DENSE, Item
from runtime.training.memory import during, room_for


@dataclass(frozen=True, slots=True)
class Position:
    """How far training is: `step` steps taken, of which `skipped` had a gradient that was not finite."""

    step: int = 0
    skipped: int = 0

    def as_tensor(self) -> Tensor:
        """For the wire."""
        return torch.tensor([self.step, self.skipped], dtype=torch.int64)


@dataclass(frozen=True)
class Copy:
    """State at a position, of whatever items: (3, P) buffers that nobody writes to any more."""

    position: Position
    generation: int
    buffers: Mapping[Item, Tensor] = field(repr=False)

    @property
    def items(self) -> frozenset[Item]:
        """What it has."""
        return frozenset(self.buffers)


class TrainState:
    """The live state. Invariant: `experts` are exactly those that the worker owns in its generation."""

    def __init__(self, config: ModelConfig, device: str = "cpu", start: Path | None = None) -> None:
        """`start`: folder of a model whose values are the first ones, instead of random ones."""
        self.config = config
        self._start = start
        self.device = device
        with room_for("the dense parameters and their optimiser state", (4, config.dense_parameters), device):
            self.model = MoeModel(config).to(device)
            self.dense = DensePiece(self.model)
        self.experts: dict[ExpertId, ExpertPiece] = {}
        self.position = Position()

    def weights(self) -> dict[ExpertId, ExpertWeights]:
        """The matrices of its experts."""
        return {key: piece.weights for key, piece in self.experts.items()}

    def pieces(self) -> list[Flat]:
        """Everything that is updated."""
        return [self.dense.flat, *(piece.flat for piece in self.experts.values())]

    def buffer(self, item: Item) -> Tensor:
        """The live (3, P) buffer of an item. Raises KeyError if it is not here."""
        return self.dense.flat.buffer if item == DENSE else self.experts[item].flat.buffer

    def blank(self, item: Item) -> Tensor:
        """An unset buffer of an item's shape."""
        if item == DENSE:
            with room_for("the state of the dense parameters", self.dense.flat.buffer.shape, self.device):
                return torch.empty_like(self.dense.flat.buffer)
        with self._room_for_expert(item):
            return expert_buffer(self.config, device=self.device)

    def fresh(self, experts: Iterable[ExpertId], seed: int) -> None:
        """First values, of `experts` alone."""
        model = MoeModel(self.config)
        if self._start is None:
            initialise_dense(model, seed)
            buffers = {key: self._expert_state(key, lambda k: initial_expert(self.config, k, seed)) for key in experts}
        else:
            with ModelFolder(self._start) as folder:
                folder.load_dense(model)
                buffers = {key: self._expert_state(key, folder.expert) for key in experts}
        self.dense.load(DensePiece(model).flat.buffer)
        self.hold(buffers, Position())

    def _expert_state(self, key: ExpertId, first: Callable[[ExpertId], ExpertWeights]) -> Tensor:
        with self._room_for_expert(key):
            return expert_buffer(self.config, first(key))

    def _piece(self, key: ExpertId, buffer: Tensor) -> ExpertPiece:
        with during(f"the gradient of expert {key[1]} of layer {key[0]}"):
            return ExpertPiece(self.config, buffer.to(self.device))

    @property
    def held_bytes(self) -> int:
        """Of everything that is updated, with its gradients."""
        return sum(piece.buffer.nbytes + piece.grad.nbytes for piece in self.pieces())

    def _room_for_expert(self, key: ExpertId) -> AbstractContextManager[None]:
        return room_for(f"the state of expert {key[1]} of layer {key[0]}", (3, self.config.expert_parameters))

    def hold(self, experts: Mapping[ExpertId, Tensor], position: Position) -> None:
        """Own exactly these experts, whose buffers become live, at this position."""
        known = {id(piece.flat.buffer): piece for piece in self.experts.values()}
        self.experts = {
            key: known.get(id(buffer)) or self._piece(key, buffer) for key, buffer in sorted(experts.items())
        }
        self.position = position
