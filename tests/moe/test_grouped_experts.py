"""The grouped kernels compute what a loop over experts computes, to bfloat16's rounding: outputs and all gradients."""

from __future__ import annotations

import pytest
import torch

from runtime.moe.experts import ExpertWeights, run_segments
from runtime.moe.grouped_experts import grouped

COUNTS = [4, 0, 5]


def experts(hidden: int) -> list[ExpertWeights]:
    draw = torch.Generator().manual_seed(1)
    made = []
    for _ in COUNTS:
        w1, w2 = torch.randn(48, hidden, generator=draw) / 4, torch.randn(hidden, 24, generator=draw) / 5
        made.append(ExpertWeights(w1.requires_grad_(), w2.requires_grad_()))
    for matrix in (matrix for expert in made for matrix in expert):
        matrix.grad = torch.zeros_like(matrix)
    return made


@pytest.mark.parametrize("hidden", [16, 12])
def test_outputs_and_gradients(hidden: int) -> None:
    x_ND = torch.randn(sum(COUNTS), hidden, generator=torch.Generator().manual_seed(2))
    ours, theirs = experts(hidden), experts(hidden)
    x_ours = x_ND.to(torch.bfloat16 if hidden % 8 == 0 else torch.float32).requires_grad_()  # 12 is not aligned
    x_theirs = x_ours.detach().float().requires_grad_()
    y_ND, wanted_ND = grouped(x_ours, COUNTS, ours), run_segments(x_theirs, COUNTS, theirs)
    for result in (y_ND, wanted_ND):
        result.float().square().sum().backward()
    pairs = [(y_ND, wanted_ND), (x_ours.grad, x_theirs.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(sum(ours, ()), sum(theirs, ()), strict=True)]
    for found, wanted in pairs:
        assert found is not None
        assert wanted is not None
        found, wanted = found.detach().float(), wanted.detach()
        assert torch.allclose(found, wanted, atol=0.03 * max(float(wanted.abs().max()), 1e-6))
