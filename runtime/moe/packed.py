"""Matrices laid out once for the CPU's matrix kernels (oneDNN), for serving. A product otherwise lays its matrix out
anew each time: steps of 8 to 32 tokens take a fifth less time so, a single token's step about as long as before.

Only for fp32 on an x86 CPU; everywhere else matrices stay as they are.
"""

from __future__ import annotations

import platform
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from runtime.moe.experts import AnyExpert, ExpertWeights

AnyModule = TypeVar("AnyModule", bound=nn.Module)

ROWS = 16
"""The number of rows that the layout is best for."""
PACKED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
PACKED |= {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"}
"""Maps that are called and not looked into."""


def can_pack(weight: Tensor) -> bool:
    """Whether this torch can, for such a matrix."""
    is_plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return is_plain and platform.machine() == "x86_64" and torch.backends.mkldnn.is_available()


class PackedLinear(nn.Module):
    """`x W^T + b` without gradients."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, x_ND: Tensor) -> Tensor:
        """Same as the map that it was made of, to rounding."""
        return torch.ops.mkldnn._linear_pointwise(x_ND, self._weight, self._bias, "none", [], "")


def packed(model: AnyModule) -> AnyModule:
    """The model with its linear maps replaced where that can be done; it can no longer be trained or written."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in PACKED and isinstance(child, nn.Linear) and can_pack(child.weight):
                setattr(module, name, PackedLinear(child.weight, child.bias))
    return model


class PackedExpert(NamedTuple):
    """One gated SiLU expert; see `ExpertWeights`."""

    first: PackedLinear
    last: PackedLinear

    def __call__(self, x_ND: Tensor) -> Tensor:
        """Outputs (N, D)."""
        gate_NF, value_NF = self.first(x_ND).chunk(2, dim=1)
        return self.last(silu(gate_NF).mul_(value_NF))


def packed_expert(expert: AnyExpert) -> PackedExpert | None:
    """The expert in memory of its own; None where it cannot be packed."""
    if isinstance(expert, ExpertWeights) and can_pack(expert.w1):
        return PackedExpert(PackedLinear(expert.w1), PackedLinear(expert.w2))
    return None
