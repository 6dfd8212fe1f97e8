"""A bank says what its experts say, however it lays them out."""

from __future__ import annotations

import pytest
import torch

from runtime.moe.expert_bank import BankExperts, ExpertBank
from runtime.moe.experts import AnyExpert, ClampedExpert, ExpertId, ExpertWeights, LocalExperts

D, F, E = 16, 24, 6


def experts(dtype: torch.dtype, layers: int = 2) -> dict[ExpertId, AnyExpert]:
    draw = torch.Generator().manual_seed(1)
    return {
        (layer, e): ExpertWeights(
            (torch.randn(2 * F, D, generator=draw) / 4).to(dtype), (torch.randn(D, F, generator=draw) / 5).to(dtype)
        )
        for layer in range(layers)
        for e in range(E)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_experts_of_a_bank_are_an_executor(dtype: torch.dtype) -> None:
    held = experts(dtype)
    bank = ExpertBank("cpu", dtype)
    bank.add(held)
    x_TD = torch.randn(11, D).to(dtype)
    ids_TK, weights_TK = torch.stack([torch.randperm(E)[:2] for _ in range(11)]), torch.rand(11, 2).to(dtype)
    ours = BankExperts(bank, E)(1, x_TD, ids_TK, weights_TK)
    assert torch.allclose(ours.float(), LocalExperts(held, E)(1, x_TD, ids_TK, weights_TK).float(), atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_changes_while_it_serves(dtype: torch.dtype) -> None:
    held = experts(dtype)
    bank, x_ND = ExpertBank("cpu", dtype), torch.randn(5, D).to(dtype)
    bank.add({key: held[key] for key in [(0, 1), (0, 4), (1, 0)]})
    bank.add({(0, 2): held[0, 2]})
    bank.drop([(0, 1), (1, 5)])
    assert bank.held == {(0, 2), (0, 4), (1, 0)}
    ours = bank.run(0, x_ND, [2, 4], [2, 3])
    wanted = torch.cat((held[0, 2](x_ND[:2]), held[0, 4](x_ND[2:])))
    assert torch.allclose(ours.float(), wanted.float(), atol=2e-2)
    with pytest.raises(KeyError):
        bank.run(0, x_ND, [1], [5])
    bank.drop([(1, 0)])
    with pytest.raises(KeyError):
        bank.run(1, x_ND, [0], [5])


def test_a_bank_has_memory_of_its_own() -> None:
    held = experts(torch.bfloat16, layers=1)
    bank, x_ND = ExpertBank("cpu", torch.bfloat16), torch.ones(1, D, dtype=torch.bfloat16)
    bank.add(held)
    before = bank.run(0, x_ND, [3], [1])
    held[0, 3].w1.zero_()
    assert torch.equal(bank.run(0, x_ND, [3], [1]), before)


def test_experts_of_another_kind_run_one_by_one() -> None:
    shapes = ((2 * F, D), (D, F), (2 * F,), (D,))
    clamped = ClampedExpert(*((torch.randn(shape) / 4).bfloat16() for shape in shapes))
    bank, x_ND = ExpertBank("cpu", torch.bfloat16), torch.randn(3, D).bfloat16()
    bank.add({(0, 0): clamped})
    assert torch.equal(bank.run(0, x_ND, [0], [3]), clamped(x_ND))
