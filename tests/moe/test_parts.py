"""Routers and experts alone, against plain formulas."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.models import ModelConfig
from runtime.moe.experts import ExpertWeights, LocalExperts
from runtime.moe.routers import AttentionRouter, SigmoidBiasRouter, TopKRouter
from tests.moe import reference

CONFIG = ModelConfig(hidden_size=16, heads=2, experts=6, experts_per_token=3, expert_size=8)


def randomised(router: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)  # larger ones saturate: ties
    return router


@pytest.mark.parametrize("kind", [AttentionRouter, TopKRouter, SigmoidBiasRouter])
def test_routers_equal_their_formulas(kind: type[torch.nn.Module]) -> None:
    router = randomised(kind(CONFIG))
    x = torch.randn(20, 16, generator=torch.Generator().manual_seed(2))
    names = {AttentionRouter: "attention", TopKRouter: "top_k", SigmoidBiasRouter: "sigmoid_bias"}
    config = CONFIG.model_copy(update={"router": names[kind]})
    parameters = {f"gate.{n}": p.detach().double() for n, p in router.named_parameters()}
    ids, weights = router(x)
    for row, chosen, weight in zip(x.double(), ids.tolist(), weights.tolist(), strict=True):
        expected = reference.choice(row, parameters, "gate", config)
        assert dict(zip(chosen, weight, strict=True)) == pytest.approx(expected, abs=1e-5)


def test_a_routers_choice_does_not_depend_on_the_type_of_the_model() -> None:
    router = randomised(AttentionRouter(CONFIG))
    x = torch.randn(50, 16).bfloat16()
    assert torch.equal(router(x)[0], router(x.float())[0])
    assert router(x)[1].dtype == torch.float32


def test_rebalancing_moves_choices_to_idle_experts() -> None:
    router = SigmoidBiasRouter(CONFIG)
    router.rebalance(torch.tensor([10, 0, 5, 5, 5, 5]), rate=0.1)
    assert router.e_score_correction_bias.tolist() == pytest.approx([-0.1, 0.1, 0, 0, 0, 0])


@settings(max_examples=25, deadline=None)
@given(tokens=st.integers(0, 12), active=st.integers(1, 3), seed=st.integers(0, 99))
def test_experts_drop_no_token(tokens: int, active: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = LocalExperts(
        {
            (0, e): ExpertWeights(torch.randn(16, 16, generator=generator), torch.randn(16, 8, generator=generator))
            for e in range(4)
        },
        4,
    )
    x = torch.randn(tokens, 16, generator=generator)
    ids = torch.randint(0, 4, (tokens, active), generator=generator)
    weights = torch.rand(tokens, active, generator=generator)
    y = bank(0, x, ids, weights)
    for t in range(tokens):
        expected = sum(
            float(weights[t, k]) * reference.expert(x[t].double(), bank.experts[0, int(ids[t, k])])
            for k in range(active)
        )
        assert torch.allclose(y[t].double(), expected, atol=1e-3)
    alone = bank.run(0, x, ids[:, 0])
    for t in range(tokens):
        assert torch.allclose(
            alone[t].double(), reference.expert(x[t].double(), bank.experts[0, int(ids[t, 0])]), atol=1e-3
        )


def test_an_expert_that_is_not_here_is_named() -> None:
    bank = LocalExperts({}, 4)
    with pytest.raises(KeyError, match="2"), torch.no_grad():
        bank.run(0, torch.ones(1, 16), torch.tensor([2]))


def test_gradients_equal_those_of_single_token_calls() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((8, 4), (4, 4)) * 3]
    weights = [ExpertWeights(w1, w2) for w1, w2 in zip(parts[::2], parts[1::2], strict=True)]
    bank = LocalExperts({(0, e): w for e, w in enumerate(weights)}, 3)
    x = torch.randn(7, 4, generator=generator)
    ids, mix = torch.randint(0, 2, (7, 2), generator=generator), torch.rand(7, 2, generator=generator)
    bank(0, x, ids, mix).square().sum().backward()
    ours = [(w.w1.grad.clone(), w.w2.grad.clone()) for w in weights]
    for w in weights:
        w.w1.grad = w.w2.grad = None
    rows = [sum(mix[t, k] * weights[int(ids[t, k])](x[t : t + 1]) for k in range(2)) for t in range(7)]
    torch.cat(rows).square().sum().backward()
    for (w1, w2), w in zip(ours[:2], weights[:2], strict=True):
        assert torch.allclose(w1, w.w1.grad, atol=1e-5)
        assert torch.allclose(w2, w.w2.grad, atol=1e-5)
    assert not ours[2][0].any()  # nobody chose it: a gradient of zeros, not none at all
