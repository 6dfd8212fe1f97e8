"""Root-mean-square normalisation (Zhang and Sennrich, arXiv 1910.07467), computed in fp32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Same shape and type as the input."""
        return nn.functional.rms_norm(x_TD.float(), self.weight.shape, self.weight.float(), self.eps).to(x_TD.dtype)
