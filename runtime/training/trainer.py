"""One training step of a generation: the same mathematics at any width, to the last bit (`grains`).

Loss is the sum over tokens divided by all tokens of the step, so gradients simply add up over workers. Every
collective comes before the first parameter changes: a step that a lost peer breaks has changed nothing.

P dense parameters, N grains, L layers, E experts of a layer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.jobspec import JobSpec
from runtime.moe.fused_experts import forget_gradients, settle_gradients
from runtime.moe.routers import SigmoidBiasRouter
from runtime.training.adamw import clip_scale, learning_rate, update
from runtime.training.expert_parallel import ExpertParallel
from runtime.training.flat import squared_gradients
from runtime.training.generation import Generation
from runtime.training.grains import Replica, grain_count, losses
from runtime.training.group import Group
from runtime.training.memory import OutOfMemory, advise_step, during, free_bytes
from runtime.training.shares import Pace, range_of, reshare, split
from runtime.training.state import Position, TrainState
from runtime.training.text import Batches, share

TOLD = 4
"""Numbers that each worker tells all others in a step: two signals, seconds and work."""
HELD_OUT = -1
"""The step whose samples an evaluation takes."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What a worker tells all others at each step's end, beside its part of the loss."""

    pending: int = 0  # newest switch that it was ordered to
    checkpoint: int = 0  # what its checkpoint writer does (runtime.training.checkpoint_writer.Writing)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step's end, the same on every member."""

    step: int  # the step that was just taken, from 0
    loss: float
    gradient_norm: float
    is_skipped: bool
    signals: tuple[Signals, ...]  # by rank
    compute_s: tuple[float, ...]  # by rank: forward and backward, without time in collectives
    speeds: tuple[float, ...] | None = None  # by rank, where this step ended a window of measuring them
    grains: tuple[int, ...] = ()  # by rank, of the next step


class Stepper:
    """What every step ends with, whatever was computed: sum over all workers, tell, update."""

    def __init__(
        self, spec: JobSpec, state: TrainState, group: Group, shape: tuple[int, int], generation: Generation
    ) -> None:
        """`shape`: layers, experts per layer."""
        assert spec.train is not None
        self._part, self._state, self._group = spec.train, state, group
        self._grains = grain_count(spec.train.global_batch, spec.max_width)
        self._pace = Pace([member.speed for member in generation.members])
        self._split = split(self._grains, self._pace.speeds)
        self._loss_scale = 1.0
        # one float64 buffer is summed over all workers: dense gradients, each grain's loss, by expert the squared norm
        # of its gradient and the tokens it saw, and by rank what it tells, which spares a collective of its own
        sizes = (state.dense.size, self._grains, math.prod(shape), math.prod(shape), group.size * TOLD)
        with during("the sums over all workers"):
            self._sums = torch.zeros(sum(sizes), dtype=torch.float64, device=state.device)
        self._gradient_P, self._losses_N, norms, routed, told = self._sums.split(sizes)
        self._squared_norms_LE, self._routed_LE = norms.view(shape), routed.view(shape)
        self._told = told.view(group.size, TOLD)

    @property
    def _mine(self) -> range:
        """This worker's grains."""
        return range_of(self._split, self._group.rank)

    def conclude(self, signals: Signals, computed_s: float, work: float) -> Outcome:
        """Reduce, tell, update. `work`: what was done in `computed_s`. Raises `PeerLost` with the state as it was."""
        state, taken = self._state, self._state.position
        mine = [signals.pending, signals.checkpoint, computed_s, work]
        self._told[self._group.rank] = torch.tensor(mine, dtype=torch.float64)
        self._group.all_reduce(self._sums)
        told = self._told.cpu()
        state.dense.flat.grad.copy_(self._gradient_P)
        loss = float(self._losses_N.sum()) * self._loss_scale
        squared_norm = float(squared_gradients([state.dense.flat])[0] + self._squared_norms_LE.sum())
        is_finite = math.isfinite(loss) and math.isfinite(squared_norm)
        if is_finite:
            self._update(squared_norm)
        state.position = Position(taken.step + 1, taken.skipped + (not is_finite))
        seconds = told[:, 2].tolist()
        is_measured = self._pace.add(told[:, 3].tolist(), seconds)
        if is_measured:
            self._split = reshare(self._split, self._pace.speeds)
        return Outcome(
            step=taken.step,
            loss=loss,
            gradient_norm=math.sqrt(squared_norm) if is_finite else math.nan,
            is_skipped=not is_finite,
            signals=tuple(Signals(int(row[0]), int(row[1])) for row in told),
            compute_s=tuple(seconds),
            speeds=self._pace.speeds if is_measured else None,
            grains=self._split,
        )

    def _update(self, squared_norm: float) -> None:
        part, position = self._part, self._state.position
        rate = learning_rate(part.optimizer, position.step, part.steps)
        scale = clip_scale(squared_norm, part.optimizer.clip_norm)
        update(self._state.pieces(), part.optimizer, rate, position.step - position.skipped + 1, scale)


class Trainer(Stepper):
    """Takes steps of one generation with the built-in model."""

    def __init__(
        self, spec: JobSpec, state: TrainState, batches: Batches, group: Group, generation: Generation
    ) -> None:
        shape = (state.config.expert_layers, state.config.experts)
        super().__init__(spec, state, group, shape, generation)
        self._batches = batches
        self._executor = ExpertParallel(group, generation, state.weights(), shape, getattr(torch, self._part.precision))
        self._balanced = [m for m in state.model.modules() if isinstance(m, SigmoidBiasRouter)]
        self._replicas = [Replica(state.model, state.dense)]
        config = state.config
        embedded = config.vocab_size * config.hidden_size  # a look-up, no product
        self._token_work, self._row_work = config.dense_parameters - embedded, config.expert_parameters
        self._loss_scale = 1 / (self._part.global_batch * self._part.sequence_length)
        self._free_bytes = free_bytes(state.device)  # that a step can have

    def step(self, signals: Signals) -> Outcome:
        """Forward, backward, reduce, tell, update. Raises `PeerLost` with the state as it was."""
        started, waited_s = time.monotonic(), self._group.waited_s
        try:
            self._forward_backward(self._state.position.step)
        except OutOfMemory as error:
            told = f"{error}: {advise_step(self._part, self._group.size, self._free_bytes)}"
            raise OutOfMemory(told) from None  # and with it go the tensors of its traceback
        computed_s = time.monotonic() - started - (self._group.waited_s - waited_s)
        return self.conclude(signals, computed_s, self._work_done())

    def _work_done(self) -> float:
        """Parameters met by this step's tokens and rows here."""
        rows, self._executor.rows_run = self._executor.rows_run, 0
        shares = [share(self._part.global_batch, self._grains, grain) for grain in self._mine]
        tokens = sum(stop - start for start, stop in shares) * self._part.sequence_length
        return float(self._token_work * tokens + self._row_work * rows)

    @torch.no_grad()
    def evaluate(self, batches: Batches, samples: int) -> float:
        """Mean token loss of the first `samples` held-out sequences, the same at any width. Raises `PeerLost`."""
        sums_N = torch.zeros_like(self._losses_N)
        batch = self._part.global_batch
        for first in range(0, samples, batch):
            self._add_losses(sums_N, batches, HELD_OUT, first, min(first + batch, samples))
        self._group.all_reduce(sums_N)
        return float(sums_N.sum()) / (samples * self._part.sequence_length)

    def _forward_backward(self, step: int) -> None:
        state, part = self._state, self._part
        self._sums.zero_()
        experts = [piece.weights for piece in state.experts.values()]
        forget_gradients(experts)
        for turn in range(part.accumulate):
            self._add_losses(self._losses_N, self._batches, step, *share(part.global_batch, part.accumulate, turn))
        settle_gradients(experts)
        if state.experts:
            layers, numbers = zip(*state.experts, strict=True)
            pieces = [piece.flat for piece in state.experts.values()]
            self._squared_norms_LE[list(layers), list(numbers)] = squared_gradients(pieces)

    def _add_losses(self, sums_N: Tensor, batches: Batches, step: int, start: int, stop: int) -> None:
        """Samples `start` to `stop` of a step, forward, and backward where gradients are wanted."""
        while len(self._replicas) < len(self._mine):
            self._replicas.append(Replica(self._state.model, self._state.dense))
        parts = [share(stop - start, self._grains, grain) for grain in self._mine]
        rows = [batches.rows(step, start + a, start + b).to(self._state.device) for a, b in parts]
        with torch.autocast(self._state.device, torch.bfloat16, enabled=self._part.precision == "bfloat16"):
            sums = losses(self._replicas, rows, self._run_experts, self._state.config.hidden_size)
        if torch.is_grad_enabled():
            with during(f"the gradients of {sum(map(len, rows))} sequences"):
                (torch.stack(sums).sum() * self._loss_scale).backward()
            for replica in self._replicas:
                replica.add_gradient(self._gradient_P)
        for grain, loss in zip(self._mine, sums, strict=False):
            sums_N[grain] += loss.detach()

    def _run_experts(self, layer: int, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        if self._balanced:
            self._routed_LE[layer] += torch.bincount(expert_ids_TK.flatten(), minlength=self._routed_LE.shape[1])
        return self._executor(layer, x_TD, expert_ids_TK, weights_TK)

    def _update(self, squared_norm: float) -> None:
        super()._update(squared_norm)
        for router, tokens_E in zip(self._balanced, self._routed_LE, strict=False):
            router.rebalance(tokens_E)
