"""From a file's tensors to an expert of ours, and from numbers of eight and four bits to whole ones.

D hidden size, F expert size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from runtime.moe.experts import AnyExpert, ClampedExpert, ExpertWeights

MXFP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Of the sixteen codes of a four-bit number (Open Compute Project, Microscaling Formats 1.0)."""

BLOCK = 128
"""Rows and columns of a block of 8-bit numbers that share a factor."""


def arrange(arrangement: str, tensors: list[Tensor]) -> AnyExpert:
    """An expert from the tensors that its layout names, in their order."""
    return {"rows": _rows, "columns": _columns, "mxfp4": _mxfp4}[arrangement](tensors)


def _rows(tensors: list[Tensor]) -> ExpertWeights:
    return ExpertWeights(torch.cat(tensors[:-1]) if len(tensors) > 2 else tensors[0], tensors[-1])


def _columns(tensors: list[Tensor]) -> ClampedExpert:
    first_D2F, last_FD, first_bias_2F, last_bias_D = tensors
    return ClampedExpert(_halves(first_D2F.T), last_FD.T.contiguous(), _halves(first_bias_2F), last_bias_D)


def _mxfp4(tensors: list[Tensor]) -> ClampedExpert:
    blocks, scales, last_blocks, last_scales, bias, last_bias = tensors
    first_2FD, last_DF = four_bit(blocks, scales), four_bit(last_blocks, last_scales)
    return ClampedExpert(
        _halves(first_2FD).contiguous(), last_DF, _halves(bias).float().contiguous(), last_bias.float()
    )


def _halves(turns: Tensor) -> Tensor:
    """Rows that take turns (gate, value, gate ...) as all gates, then all values."""
    return torch.cat((turns[0::2], turns[1::2]))


def four_bit(blocks: Tensor, scales: Tensor) -> Tensor:
    """A matrix (rows, columns) from blocks (rows, columns / 32, 16) of two numbers per byte, the low half first."""
    codes = torch.stack((blocks & 0x0F, blocks >> 4), dim=-1).flatten(2).long()
    values = torch.tensor(MXFP4_VALUES, device=blocks.device)[codes]
    return torch.ldexp(values, scales.int().unsqueeze(2) - 127).flatten(1)


def eight_bit(matrix: Tensor, factors: Tensor) -> Tensor:
    """A matrix of 8-bit numbers times one factor for each of its blocks of 128 x 128 numbers (DeepSeek-V3)."""
    spread = factors.repeat_interleave(BLOCK, dim=0).repeat_interleave(BLOCK, dim=1)
    return matrix.float() * spread[: matrix.shape[0], : matrix.shape[1]]
