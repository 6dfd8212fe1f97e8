"""The optimiser on flat pieces against torch's, and the schedule's shape."""

from __future__ import annotations

import pytest
import torch

from protocol.jobspec import Optimizer
from runtime.training.adamw import clip_scale, learning_rate, update
from runtime.training.flat import Flat


def test_updates_equal_those_of_torch() -> None:
    options = Optimizer(weight_decay=0.2)
    generator = torch.Generator().manual_seed(0)
    piece = Flat(torch.zeros(3, 10), decayed=6)
    piece.buffer[0] = torch.randn(10, generator=generator)
    ours = [torch.nn.Parameter(torch.empty(2, 3)), torch.nn.Parameter(torch.empty(4))]
    piece.attach(ours)
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    groups = [{"params": theirs[:1], "weight_decay": 0.2}, {"params": theirs[1:], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=options.betas, eps=options.eps)
    for step in range(1, 6):
        for mine, other in zip(ours, theirs, strict=True):
            gradient = torch.randn(mine.shape, generator=generator)
            mine.grad.copy_(gradient)
            other.grad = gradient * 0.5
        update([piece], options, 0.01, step, gradient_scale=0.5)
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_the_rate_warms_up_and_decays_to_its_last_fraction() -> None:
    options = Optimizer(learning_rate=1.0, warmup_steps=4, final_fraction=0.1)
    rates = [learning_rate(options, step, 20) for step in range(21)]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates[20] == pytest.approx(0.1)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(Optimizer(warmup_steps=0), 0, 1) == pytest.approx(1e-3)


def test_clipping_limits_the_norm_and_leaves_small_gradients_alone() -> None:
    assert clip_scale(4.0, None) == 1.0
    assert clip_scale(0.25, 1.0) == 1.0
    assert clip_scale(4.0, 1.0) == pytest.approx(0.5, rel=1e-5)
