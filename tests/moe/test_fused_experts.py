"""The experts' kernel for training against autograd through the plain loop, in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from runtime.moe.experts import ExpertWeights, run_segments
from runtime.moe.fused_experts import forget_gradients, fused, settle_gradients

D, F = 12, 10


def bank(experts: int, generator: torch.Generator, dtype: torch.dtype) -> list[ExpertWeights]:
    made = []
    for _ in range(experts):
        matrices = [nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in ((2 * F, D), (D, F))]
        for matrix in matrices:
            matrix.grad = torch.zeros_like(matrix)
        made.append(ExpertWeights(*matrices))
    return made


@settings(max_examples=30, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=5), passes=st.integers(1, 2), seed=st.integers(0, 99))
def test_values_and_gradients_equal_those_of_autograd(counts: list[int], passes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    experts = bank(len(counts), generator, torch.float64)
    x = torch.randn(sum(counts), D, generator=generator, dtype=torch.float64)
    weights = torch.randn(sum(counts), D, generator=generator, dtype=torch.float64)
    results = []
    for kernel in (run_segments, fused):
        for _ in range(passes):  # gradients add up
            rows = x.clone().requires_grad_()
            y = kernel(rows, counts, experts)
            (y * weights).sum().backward()
        results.append([y.detach(), rows.grad, *(m.grad.clone() for expert in experts for m in expert)])
        for expert in experts:
            for matrix in expert:
                matrix.grad.zero_()
    for expected, found in zip(*results, strict=True):
        assert torch.allclose(expected, found, rtol=1e-12, atol=1e-12)


def test_an_experts_numbers_do_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    experts, x = bank(4, generator, torch.float32), torch.randn(20, D, generator=generator)

    def gradients(members: slice, rows: slice, counts: list[int]) -> list[torch.Tensor]:
        for expert in experts:
            for matrix in expert:
                matrix.grad.zero_()
        y = fused(x[rows].clone().requires_grad_(), counts, experts[members])
        y.square().sum().backward()
        return [y.detach(), *(m.grad.clone() for m in experts[2])]

    together = gradients(slice(4), slice(20), [3, 5, 7, 5])
    alone = gradients(slice(2, 3), slice(8, 15), [7])
    assert torch.equal(together[0][8:15], alone[0])
    assert all(torch.equal(a, b) for a, b in zip(together[1:], alone[1:], strict=True))


def test_a_step_after_forget_gradients_leaves_what_a_step_after_zeros_does() -> None:
    generator = torch.Generator().manual_seed(0)
    experts, x = bank(3, generator, torch.float32), torch.randn(12, D, generator=generator)

    def step() -> list[torch.Tensor]:
        for counts, rows in (([0, 3, 2], slice(5)), ([0, 7, 0], slice(5, 12))):  # gradients of two parts add up
            fused(x[rows].clone().requires_grad_(), counts, experts).square().sum().backward()
        settle_gradients(experts)
        return [m.grad.clone() for expert in experts for m in expert]

    after_zeros = step()
    forget_gradients(experts)
    assert all(torch.equal(a, b) for a, b in zip(after_zeros, step(), strict=True))
    assert not after_zeros[0].any()
    assert not experts[0].w1.grad.any()
