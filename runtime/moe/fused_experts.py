"""Experts for training: matrix products segment by segment, with gradients added straight into place.

Autograd makes a second full-size gradient of every matrix and then adds it; with few rows for each expert that traffic
is most of a step's time (`python -m bench.expert_kernels`: 1.0 to 2 times as fast on two CPU cores, more so the fewer
the rows). Each product has the shape of its own expert's rows, so a result does not depend on which other experts run
in the same process, and training is the same at any width.

`torch.nn.functional.grouped_mm` was measured beside it: on a CPU it gains 6 to 12 % below 16 rows an expert, loses
up to 40 % above 64, and needs the experts side by side in memory, where elastic training wants each one movable alone.

N rows, D hidden size, F expert size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import silu

if TYPE_CHECKING:
    from runtime.moe.experts import ExpertWeights


def fused(x_ND: Tensor, counts: Sequence[int], experts: Sequence[ExpertWeights]) -> Tensor:
    """Outputs (N, D) of rows sorted by expert, `counts[e]` rows for `experts[e]`, of which there is at least one.

    Products are in the type of `x_ND`, whatever that of the experts. The backward pass adds to each matrix's `.grad`,
    which must be there, or writes over it after `forget_gradients`. `x_ND` must depend on something that wants a
    gradient, as the backward pass is not run otherwise.
    """
    return _Fused.apply(x_ND, counts, experts)


def forget_gradients(experts: Iterable[ExpertWeights]) -> None:
    """Before a step: the next gradient of each matrix is written over what its `.grad` holds.

    Zeros would be written and read again, which with few rows for each expert takes about as long as its products.
    """
    for expert in experts:
        for matrix in expert:
            setattr(matrix, _FORGOTTEN, True)


def settle_gradients(experts: Iterable[ExpertWeights]) -> None:
    """After a step: the gradient of whoever got no row is zero."""
    left = [matrix for expert in experts for matrix in expert if _is_forgotten(matrix)]
    for matrix in left:
        setattr(matrix, _FORGOTTEN, False)
    if left:
        torch._foreach_zero_([matrix.grad for matrix in left])


_FORGOTTEN = "gradient_is_forgotten"


def _is_forgotten(matrix: Tensor) -> bool:
    return getattr(matrix, _FORGOTTEN, False)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, counts: Sequence[int], experts: Sequence[ExpertWeights]) -> Tensor:
        y_ND = torch.empty_like(x_ND)
        hidden_N2F = x_ND.new_empty(x_ND.shape[0], experts[0].w1.shape[0])
        for expert, x, hidden, y in _segments(experts, counts, x_ND, hidden_N2F, y_ND):
            torch.mm(x, expert.w1.to(x.dtype).t(), out=hidden)
            gate, value = hidden.chunk(2, dim=1)
            torch.mm(silu(gate).mul_(value), expert.w2.to(x.dtype).t(), out=y)
        ctx.save_for_backward(x_ND, hidden_N2F)
        ctx.counts, ctx.experts = counts, experts
        return y_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        x_ND, hidden_N2F = ctx.saved_tensors
        dx_ND = torch.empty_like(x_ND)
        parts = _segments(ctx.experts, ctx.counts, x_ND, hidden_N2F, grad_ND.contiguous(), dx_ND)
        for expert, x, hidden, grad, dx in parts:
            _segment_backward(expert, x, hidden, grad, dx)
        return dx_ND, None, None


def _segment_backward(expert: ExpertWeights, x: Tensor, hidden: Tensor, grad: Tensor, dx: Tensor) -> None:
    gate, value = hidden.chunk(2, dim=1)
    active = silu(gate)
    _add_product(expert.w2, grad.t(), active * value)
    d_product = torch.mm(grad, expert.w2.to(grad.dtype))
    d_hidden = torch.empty_like(hidden)
    d_gate, d_value = d_hidden.chunk(2, dim=1)
    torch.mul(d_product, active, out=d_value)
    torch.ops.aten.silu_backward.grad_input(d_product.mul_(value), gate, grad_input=d_gate)
    _add_product(expert.w1, d_hidden.t(), x)
    torch.mm(d_hidden, expert.w1.to(grad.dtype), out=dx)


def _add_product(matrix: Tensor, a: Tensor, b: Tensor) -> None:
    total = matrix.grad
    assert total is not None
    is_first = _is_forgotten(matrix)
    setattr(matrix, _FORGOTTEN, False)
    if total.dtype != a.dtype:
        product = torch.mm(a, b)
        total.copy_(product) if is_first else total.add_(product)
    elif is_first:
        torch.mm(a, b, out=total)
    else:
        total.addmm_(a, b)


def _segments(experts: Sequence[ExpertWeights], counts: Sequence[int], *by_row: Tensor) -> Any:
    """Each expert that has rows, detached, with its rows of every tensor."""
    parts = zip(experts, *(t.split(list(counts)) for t in by_row), strict=True)
    return [part for part, count in zip(parts, counts, strict=True) if count]
