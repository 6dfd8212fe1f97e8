"""Parameters and their optimiser state in one contiguous buffer, so that they are reduced, copied and sent whole.

P parameters (numbers) of a piece. Row 0 of a (3, P) buffer holds values, rows 1 and 2 AdamW's moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from protocol.models import ModelConfig
from runtime.moe.experts import ExpertWeights, expert_shapes


class Flat:
    """One piece: all dense parameters, or one expert. The first `decayed` numbers are subject to weight decay."""

    def __init__(self, buffer: Tensor, decayed: int) -> None:
        self.buffer = buffer
        self.decayed = decayed
        self.grad = torch.zeros_like(buffer[0])

    def attach(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the parameters, in order, views of this piece, gradients included. Their own values are dropped."""
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self.buffer[0, start:end].view(parameter.shape)
            if parameter.requires_grad:
                parameter.grad = self.grad[start:end].view(parameter.shape)
            start = end


class DensePiece:
    """Parameters as one `Flat`: matrices first (decayed), then norms and biases."""

    def __init__(self, model: nn.Module, trained_only: bool = False) -> None:
        """All parameters of a model, or those that want gradients. There is at least one."""
        mine = [p for p in model.parameters() if p.requires_grad or not trained_only]
        parameters = sorted(mine, key=lambda p: p.dim() <= 1)  # stable: named order otherwise
        self._places: dict[int, tuple[int, int]] = {}
        start = 0
        for parameter in parameters:
            self._places[id(parameter)] = (start, start + parameter.numel())
            start += parameter.numel()
        self.size = start
        decayed = sum(p.numel() for p in parameters if p.dim() > 1)
        self.flat = Flat(torch.zeros(3, self.size, device=parameters[0].device), decayed)
        self.flat.buffer[0] = torch.cat([p.detach().flatten() for p in parameters])
        self.flat.attach(parameters)

    def place(self, parameter: nn.Parameter) -> tuple[int, int]:
        """Where a parameter of the model lies in the buffer."""
        return self._places[id(parameter)]

    def view(self, parameter: nn.Parameter) -> Tensor:
        """Its values there."""
        start, end = self.place(parameter)
        return self.flat.buffer[0, start:end].view(parameter.shape)

    def load(self, buffer: Tensor) -> None:
        """Take over the state of a (3, P) buffer."""
        self.flat.buffer.copy_(buffer)


class ExpertPiece:
    """One expert as a `Flat`, and as the two matrices that the model runs."""

    def __init__(self, config: ModelConfig, buffer: Tensor) -> None:
        self.flat = Flat(buffer, decayed=buffer.shape[1])
        shapes = expert_shapes(config.hidden_size, config.expert_size)
        parameters = [nn.Parameter(torch.empty(shape, device=buffer.device)) for shape in shapes]
        self.flat.attach(parameters)
        self.weights = ExpertWeights(*parameters)


def expert_buffer(config: ModelConfig, weights: ExpertWeights | None = None, device: str = "cpu") -> Tensor:
    """A (3, P) buffer with these values (or unset ones) and blank moments."""
    size = sum(math.prod(shape) for shape in expert_shapes(config.hidden_size, config.expert_size))
    if weights is None:
        return torch.empty(3, size, device=device)
    buffer = torch.zeros(3, size, device=device)
    buffer[0] = torch.cat([w.detach().flatten() for w in weights])
    return buffer


def squared_gradients(pieces: Sequence[Flat]) -> Tensor:
    """Each piece's sum of squares of its gradient, (pieces,), float64, left on their device.

    Summed within a piece in float32: a float64 copy of every gradient took a tenth of a step.
    """
    return torch.stack(torch._foreach_norm([piece.grad for piece in pieces], 2)).double().square()
