"""A model of the user's own: its trained parameters as one piece, the same on every worker, and the steps it takes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from protocol.jobspec import JobSpec
from runtime.moe.experts import ExpertId, ExpertWeights
from runtime.training.flat import DensePiece, ExpertPiece, Flat
from runtime.training.generation import DENSE, Generation, Item
from runtime.training.grains import GRID
from runtime.training.group import Group
from runtime.training.state import Position
from runtime.training.text import share
from runtime.training.trainer import Stepper


class UnusableModel(ValueError):
    """A model that cannot be trained elastically; the message says what to change."""


def check(module: nn.Module) -> None:
    """Raises `UnusableModel`."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise UnusableModel("session.model: no parameter wants a gradient, so there is nothing to train")
    odd = next((name for name, p in trained.items() if p.dtype != torch.float32), None)
    if odd is not None:
        raise UnusableModel(
            f"session.model: {odd} is {trained[odd].dtype}; keep parameters in float32 and compute under torch.autocast"
        )
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats and part.training:
            raise UnusableModel(
                f"session.model: {name} keeps running statistics, which would depend on the width; "
                "use GroupNorm or LayerNorm, or call eval() on it"
            )


class OwnState:
    """What `runtime.training.state.TrainState` is for the built-in model. It has no experts."""

    def __init__(self, module: nn.Module, device: str) -> None:
        """Raises `UnusableModel`."""
        check(module)
        self.model, self.device = module.to(device), device
        self.dense = DensePiece(module, trained_only=True)
        self.experts: dict[ExpertId, ExpertPiece] = {}
        self.position = Position()
        self._first_P = self.dense.flat.buffer[0].clone()

    def weights(self) -> dict[ExpertId, ExpertWeights]:
        """None."""
        return {}

    def pieces(self) -> list[Flat]:
        """Everything that is updated."""
        return [self.dense.flat]

    def buffer(self, item: Item) -> Tensor:
        """The live (3, P) buffer. Raises KeyError for an expert."""
        if item != DENSE:
            raise KeyError(item)
        return self.dense.flat.buffer

    def blank(self, item: Item) -> Tensor:
        """An unset buffer of an item's shape."""
        return torch.empty_like(self.buffer(item))

    def fresh(self, experts: Iterable[ExpertId], seed: int) -> None:
        """The values that the model came with; `seed` was set before it was made."""
        self.dense.flat.buffer.zero_()
        self.dense.flat.buffer[0] = self._first_P
        self.position = Position()

    def agree_on_first(self, group: Group) -> None:
        """Take rank 0's first values, lest a model made by chance differ. Raises `PeerLost`, values as they were."""
        values = self.dense.flat.buffer[0]
        agreed = values.clone() if group.rank == 0 else torch.zeros_like(values)
        group.all_reduce(agreed)
        values.copy_(agreed)

    def hold(self, experts: Mapping[ExpertId, Tensor], position: Position) -> None:
        """Be at this position."""
        self.position = position


class OwnTrainer(Stepper):
    """Adds up what the user's function computes grain by grain; `conclude` ends the step."""

    def __init__(self, spec: JobSpec, state: OwnState, group: Group, generation: Generation) -> None:
        super().__init__(spec, state, group, (0, 0), generation)
        self._state: OwnState = state

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self._part.global_batch

    @property
    def grains(self) -> range:
        """Those of this worker."""
        return self._mine

    @property
    def work(self) -> float:
        """Samples of this worker's grains."""
        return float(sum(len(self.samples(grain)) for grain in self.grains))

    def samples(self, grain: int) -> range:
        """Numbers of a grain's samples within the step."""
        return range(*share(self._part.global_batch, self._grains, grain))

    def begin(self) -> None:
        """Before a step's first grain."""
        self._sums.zero_()
        self._state.dense.flat.grad.zero_()

    def add(self, grain: int, loss: Tensor) -> None:
        """The backward pass of a grain's mean loss, weighed by its samples."""
        weight = len(self.samples(grain)) / self._part.global_batch
        (loss * weight).backward()
        gradient_P = self._state.dense.flat.grad
        self._gradient_P.add_((gradient_P.double() + GRID).sub_(GRID))
        gradient_P.zero_()
        self._losses_N[grain] = loss.detach().double() * weight
