"""Experts for training in bfloat16 on a GPU: all of a layer's products in a few launches of torch's grouped kernels.

The experts stay apart in memory, in float32, each movable alone; a pass gathers them once, as bfloat16. One launch for
each product of each expert (`runtime.moe.fused_experts`) leaves a GPU waiting for the host (docs/BENCHMARKS.md).

N rows, E experts, D hidden size, F expert size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, silu

from runtime.moe.fused_experts import fused, settle_gradients

if TYPE_CHECKING:
    from runtime.moe.experts import ExpertWeights

Kernel = Callable[[Tensor, Sequence[int], "Sequence[ExpertWeights]"], Tensor]

ALIGNED = 8
"""Both sizes must be multiples: the kernels read 16 bytes at a time."""


def kernel_for(x_ND: Tensor) -> Kernel:
    """What trains experts on rows like these fastest."""
    return grouped if x_ND.is_cuda and x_ND.dtype == torch.bfloat16 else fused


def grouped(x_ND: Tensor, counts: Sequence[int], experts: Sequence[ExpertWeights]) -> Tensor:
    """As `runtime.moe.fused_experts.fused`, of which it takes the place, for bfloat16 rows on a GPU."""
    if any(size % ALIGNED for size in experts[0].w2.shape):
        return fused(x_ND, counts, experts)
    return _Grouped.apply(x_ND, counts, experts)


def products(x_ND: Tensor, counts: Sequence[int], w1_EFD: Tensor, w2_EDF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, D) of rows sorted by expert, `counts[e]` rows for expert e; and what a backward pass wants of it: the
    first products (N, 2 F), and where each expert's rows end, (E,)."""
    ends_E = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(x_ND.device)
    hidden_N2F = grouped_mm(x_ND, w1_EFD.transpose(1, 2), offs=ends_E)
    gate_NF, value_NF = hidden_N2F.chunk(2, dim=1)
    return grouped_mm(silu(gate_NF) * value_NF, w2_EDF.transpose(1, 2), offs=ends_E), hidden_N2F, ends_E


class _Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, counts: Sequence[int], experts: Sequence[ExpertWeights]) -> Tensor:
        w1_EFD, w2_EDF = (_gathered([expert[part] for expert in experts], x_ND.dtype) for part in (0, 1))
        y_ND, hidden_N2F, ends_E = products(x_ND, counts, w1_EFD, w2_EDF)
        ctx.save_for_backward(x_ND, hidden_N2F, ends_E, w1_EFD, w2_EDF)
        ctx.experts = experts
        return y_ND

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, None, None]:
        x_ND, hidden_N2F, ends_E, w1_EFD, w2_EDF = ctx.saved_tensors
        gate_NF, value_NF = hidden_N2F.chunk(2, dim=1)
        active_NF, grad_ND = silu(gate_NF), grad_ND.contiguous()
        w2_grads_EDF = grouped_mm(grad_ND.t(), active_NF * value_NF, offs=ends_E)
        d_product_NF = grouped_mm(grad_ND, w2_EDF, offs=ends_E)
        d_gate_NF = torch.ops.aten.silu_backward(d_product_NF * value_NF, gate_NF)
        d_hidden_N2F = torch.cat((d_gate_NF, d_product_NF * active_NF), dim=1)
        w1_grads_EFD = grouped_mm(d_hidden_N2F.t(), x_ND, offs=ends_E)
        settle_gradients(ctx.experts)
        for part, grads in enumerate((w1_grads_EFD, w2_grads_EDF)):
            torch._foreach_add_([expert[part].grad for expert in ctx.experts], list(grads.float().unbind()))
        return grouped_mm(d_hidden_N2F, w1_EFD, offs=ends_E), None, None


@torch.no_grad()
def _gathered(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Side by side, (E, ...)."""
    out = torch.empty(len(matrices), *matrices[0].shape, dtype=dtype, device=matrices[0].device)
    torch._foreach_copy_(list(out.unbind()), [matrix.detach() for matrix in matrices])
    return out
