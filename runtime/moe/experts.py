"""Experts: gated SiLU feed-forward blocks, run without dropping a token, wherever they live.

T tokens, K experts per token, N (token, expert) pairs, D hidden size, F expert size, E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

ExpertId = tuple[int, int]
"""(layer, expert); layers count from the first that has experts"""


class ExpertExecutor(Protocol):
    """Runs the chosen experts of a layer: here, on the other training workers, or on expert shards."""

    def __call__(self, layer: int, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """`y_t = sum over k of weights[t, k] * expert[ids[t, k]](x_t)`, (T, D)."""


class ExpertWeights(NamedTuple):
    """One expert's matrices: gate and value stacked, and the way back."""

    w1: Tensor  # (2 F, D)
    w2: Tensor  # (D, F)

    def __call__(self, x_ND: Tensor) -> Tensor:
        """`w2 (silu(gate x) * (value x))`, (N, D)."""
        gate_NF, value_NF = linear(x_ND, self.w1).chunk(2, dim=1)
        return linear(silu(gate_NF) * value_NF, self.w2)


class ClampedExpert(NamedTuple):
    """An expert of GPT-OSS: biases, gate and value clamped to 7, `gate * sigmoid(1.702 gate) * (value + 1)`."""

    w1: Tensor  # (2 F, D)
    w2: Tensor  # (D, F)
    b1: Tensor  # (2 F,)
    b2: Tensor  # (D,)

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Outputs (N, D)."""
        gate_NF, value_NF = linear(x_ND, self.w1, self.b1).chunk(2, dim=1)
        gate_NF, value_NF = gate_NF.clamp(max=7.0), value_NF.clamp(-7.0, 7.0)
        return linear((value_NF + 1) * gate_NF * torch.sigmoid(1.702 * gate_NF), self.w2, self.b2)


AnyExpert = ExpertWeights | ClampedExpert


def copied(expert: AnyExpert, device: str) -> AnyExpert:
    """A copy in memory of its own, on this device or another."""
    return type(expert)(*(tensor.to(device, copy=True) for tensor in expert))


class Grouped(NamedTuple):
    """(token, expert) pairs sorted by expert; pairs of one expert keep the order of their tokens."""

    order: Tensor  # (N,): pair (t, k) as t * K + k, by sorted place
    back: Tensor  # (N,): the inverse of `order`
    counts: list[int]  # pairs of each expert


def group_by_expert(expert_ids_TK: Tensor, experts: int) -> Grouped:
    """Sort pairs by expert. The order does not depend on anything but the ids."""
    flat_N = expert_ids_TK.flatten()
    order = torch.argsort(flat_N, stable=True)
    return Grouped(order, inverse(order), torch.bincount(flat_N, minlength=experts).tolist())


def run_segments(x_ND: Tensor, counts: Sequence[int], experts: Sequence[AnyExpert]) -> Tensor:
    """Outputs (N, D) of rows sorted by expert, `counts[e]` rows for `experts[e]`.

    Experts without a row run too: every parameter gets a gradient, and the result depends on `x_ND` always, which
    keeps the collectives of a distributed backward pass matched.
    """
    if not experts:
        return x_ND
    rows = x_ND.split(list(counts))
    return torch.cat([expert(part) for expert, part in zip(experts, rows, strict=True)])


class _Permute(torch.autograd.Function):
    """Row selection by a permutation: its gradient is another selection, where indexing would scatter and add."""

    @staticmethod
    def forward(ctx, x_ND: Tensor, order: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return x_ND.index_select(0, order)

    @staticmethod
    def backward(ctx, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad_ND.index_select(0, back), None, None


def permute(x_ND: Tensor, order: Tensor, back: Tensor) -> Tensor:
    """`x_ND[order]`, for an order that has every row exactly once, and its inverse."""
    return _Permute.apply(x_ND, order, back)


def inverse(order: Tensor) -> Tensor:
    """The permutation that undoes `order`."""
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    return place


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: Tensor, grouped: Grouped, active: int) -> Tensor:
        ctx.save_for_backward(grouped.back)
        ctx.shape = (len(x_TD), active)
        return x_TD.index_select(0, grouped.order.div(active, rounding_mode="floor"))

    @staticmethod
    def backward(ctx, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return grad_ND.index_select(0, back).unflatten(0, ctx.shape).sum(dim=1), None, None


def spread(x_TD: Tensor, grouped: Grouped, active: int) -> Tensor:
    """Each token once for each of its `active` experts, sorted by expert: (N, D)."""
    return _Spread.apply(x_TD, grouped, active)


def weigh(y_ND: Tensor, grouped: Grouped, weights_TK: Tensor) -> Tensor:
    """Bring sorted outputs back to their tokens and sum each token's K, weighted: (T, D)."""
    y_TKD = permute(y_ND, grouped.back, grouped.order).unflatten(0, weights_TK.shape)
    return (y_TKD * weights_TK.to(y_TKD.dtype).unsqueeze(2)).sum(dim=1)


class LocalExperts:
    """Experts in this process: an `ExpertExecutor` if it holds all of them, a bank of some otherwise."""

    def __init__(self, experts: Mapping[ExpertId, AnyExpert], experts_per_layer: int) -> None:
        self.experts = dict(experts)
        self._per_layer = experts_per_layer

    def __call__(self, layer: int, x_TD: Tensor, expert_ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """See `ExpertExecutor`. Raises KeyError for an expert that is not here."""
        grouped = group_by_expert(expert_ids_TK, self._per_layer)
        x_ND = spread(x_TD, grouped, expert_ids_TK.shape[1])
        return weigh(self._run_sorted(layer, x_ND, grouped.counts), grouped, weights_TK)

    def run(self, layer: int, x_ND: Tensor, expert_ids_N: Tensor) -> Tensor:
        """Row n through expert `expert_ids_N[n]`, unweighted, (N, D). Raises KeyError for one that is not here."""
        grouped = group_by_expert(expert_ids_N.unsqueeze(1), self._per_layer)
        y_ND = self._run_sorted(layer, x_ND[grouped.order], grouped.counts)
        return torch.empty_like(y_ND).index_copy(0, grouped.order, y_ND)

    def _run_sorted(self, layer: int, x_ND: Tensor, counts: list[int]) -> Tensor:
        idle_too = torch.is_grad_enabled()  # so that every expert's parameters get a gradient
        wanted = [e for e, count in enumerate(counts) if count or (idle_too and (layer, e) in self.experts)]
        return run_segments(x_ND, [counts[e] for e in wanted], [self.experts[layer, e] for e in wanted])


def expert_shapes(hidden_size: int, expert_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Shapes of an expert's two matrices."""
    return (2 * expert_size, hidden_size), (hidden_size, expert_size)
