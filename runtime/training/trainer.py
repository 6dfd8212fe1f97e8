"""One training step of a generation: the same mathematics at any width.

The global batch is split into whole sequences. Loss is the sum over tokens divided by all tokens of the step, so
gradients simply add up over workers. Every collective comes before the first parameter changes: a step that a lost
peer breaks has changed nothing.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from protocol.jobspec import TrainPart
from runtime.moe.routers import SigmoidBiasRouter
from runtime.training.adamw import clip_scale, learning_rate, update
from runtime.training.expert_parallel import ExpertParallel
from runtime.training.flat import zero_gradients
from runtime.training.generation import Generation
from runtime.training.group import Group
from runtime.training.state import Position, TrainState
from runtime.training.text import Batches, share


@dataclass(frozen=True, slots=True)
class Signals:
    """What a worker tells all others at each step's end, beside its part of the loss."""

    pending: int = 0  # newest switch that it was ordered to
    checkpoint: int = 0  # what its checkpoint writer does (runtime.training.checkpoints.Writing)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step's end, the same on every member (but for `compute_s`)."""

    step: int  # the step that was just taken, from 0
    loss: float
    gradient_norm: float
    is_skipped: bool
    signals: tuple[Signals, ...]  # by rank
    compute_s: tuple[float, ...]  # by rank: forward and backward, without time in collectives


class Trainer:
    """Takes steps of one generation."""

    def __init__(
        self, part: TrainPart, state: TrainState, batches: Batches, group: Group, generation: Generation
    ) -> None:
        self._part, self._state, self._batches, self._group = part, state, batches, group
        shape = (state.config.layers, state.config.experts)
        self._executor = ExpertParallel(group, generation, state.weights(), shape)
        self._balanced = [m for m in state.model.modules() if isinstance(m, SigmoidBiasRouter)]
        self._routed_LE = torch.zeros(shape, dtype=torch.float64, device=state.device)
        self._total_tokens = part.global_batch * part.sequence_length

    def step(self, signals: Signals) -> Outcome:
        """Forward, backward, reduce, tell, update. Raises `PeerLost` with the state as it was."""
        state = self._state
        started, waited_s = time.monotonic(), self._group.waited_s
        loss_sum = self._forward_backward(state.position.step)
        computed_s = time.monotonic() - started - (self._group.waited_s - waited_s)
        self._group.all_reduce(state.dense.flat.grad)
        if self._balanced:
            self._group.all_reduce(self._routed_LE)
        told = self._tell(loss_sum, signals, computed_s)
        loss = float(told[:, 0].sum()) / self._total_tokens
        squared_norm = state.dense.flat.squared_gradient() + float(told[:, 1].sum())
        is_finite = math.isfinite(loss) and math.isfinite(squared_norm)
        taken = state.position
        if is_finite:
            self._update(squared_norm)
        state.position = Position(taken.step + 1, taken.skipped + (not is_finite))
        return Outcome(
            step=taken.step,
            loss=loss,
            gradient_norm=math.sqrt(squared_norm) if is_finite else math.nan,
            is_skipped=not is_finite,
            signals=tuple(Signals(int(row[2]), int(row[3])) for row in told),
            compute_s=tuple(told[:, 4].tolist()),
        )

    def _forward_backward(self, step: int) -> float:
        zero_gradients(self._state.pieces())
        rows = self._batches.rows(step, *share(self._part.global_batch, self._group.size, self._group.rank))
        rows = rows.to(self._state.device)
        logits_TV = self._state.model(rows[:, :-1], self._run_experts)
        loss_sum = cross_entropy(logits_TV.float(), rows[:, 1:].flatten(), reduction="sum")
        (loss_sum / self._total_tokens).backward()
        return float(loss_sum.detach())

    def _run_experts(self, layer: int, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        if self._balanced:
            self._routed_LE[layer] = torch.bincount(expert_ids_TK.flatten(), minlength=self._routed_LE.shape[1])
        return self._executor(layer, x_TD, expert_ids_TK, weights_TK)

    def _tell(self, loss_sum: float, signals: Signals, computed_s: float) -> Tensor:
        mine = sum(piece.flat.squared_gradient() for _, piece in sorted(self._state.experts.items()))
        row = [loss_sum, mine, signals.pending, signals.checkpoint, computed_s]
        told = torch.tensor(row, dtype=torch.float64, device=self._state.device)
        return self._group.all_gather(told).cpu()

    def _update(self, squared_norm: float) -> None:
        part, position = self._part, self._state.position
        rate = learning_rate(part.optimizer, position.step, part.steps)
        scale = clip_scale(squared_norm, part.optimizer.clip_norm)
        for piece in self._state.pieces():
            update(piece, part.optimizer, rate, position.step - position.skipped + 1, scale)
        for router, tokens_E in zip(self._balanced, self._routed_LE, strict=False):
            router.rebalance(tokens_E)
