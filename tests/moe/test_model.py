"""The model against a slow float64 reference, and decoding with a cache against the whole prompt at once."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache
from runtime.moe.experts import LocalExperts
from runtime.moe.key_value_pool import pooled_caches
from runtime.moe.model import MoeModel, all_experts, initial_expert, initial_experts, initialise_dense
from tests.moe import reference

SMALL = ModelConfig(vocab_size=50, hidden_size=24, layers=2, heads=4, experts=5, experts_per_token=2, expert_size=16)
VARIANTS = {
    "yuan": SMALL,
    "grouped heads, whole rotary": SMALL.model_copy(update={"kv_heads": 2, "rotary_fraction": 1.0}),
    "top_k, tied": SMALL.model_copy(update={"router": "top_k", "tie_embeddings": True, "localised_filtering": False}),
    "sigmoid_bias, wide heads": SMALL.model_copy(update={"router": "sigmoid_bias", "head_size": 10}),
}


def lively(config: ModelConfig, seed: int = 3) -> tuple[MoeModel, LocalExperts]:
    """A model whose parameters are large enough for every part to matter, biases and norms included."""
    model, experts = MoeModel(config), initial_experts(config, seed)
    initialise_dense(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.2
        for weights in experts.experts.values():
            weights.w1.mul_(12)
            weights.w2.mul_(20)
    return model, experts


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_float64_reference(name: str) -> None:
    model, experts = lively(VARIANTS[name])
    ids = torch.tensor([[3, 17, 17, 41, 0, 8, 30], [1, 2, 49, 12, 12, 12, 5]])
    ours = model(ids, experts).detach().double()
    for row, sequence in zip(ours.chunk(2), ids.tolist(), strict=True):
        expected = reference.logits(model, experts, sequence)
        assert torch.allclose(row, expected, atol=2e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("is_pooled", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_split_into_prompt_chunks_and_decode_steps_gives_the_same_logits(
    name: str, is_pooled: bool, data: st.DataObject
) -> None:
    config = VARIANTS[name]
    model, experts = lively(config)
    count = data.draw(st.integers(1, 3))
    length = st.integers(1, 9)
    sequences = [
        torch.randint(0, 50, (data.draw(length),), generator=torch.Generator().manual_seed(n)) for n in range(count)
    ]
    new_cache = pooled_caches(config, "cpu", torch.float32) if is_pooled else partial(SequenceCache, config)
    caches = [new_cache(2) for _ in sequences]
    done = [0] * count
    while any(d < len(s) for d, s in zip(done, sequences, strict=True)):
        active = [n for n in range(count) if done[n] < len(sequences[n])]
        sizes = [data.draw(st.integers(1, len(sequences[n]) - done[n])) for n in active]
        parts = [sequences[n][done[n] : done[n] + size] for n, size in zip(active, sizes, strict=True)]
        last = model.extend(parts, [caches[n] for n in active], experts)
        for row, n, size in zip(last, active, sizes, strict=True):
            done[n] += size
            whole = model(sequences[n][None, : done[n]], experts)[-1]
            assert torch.allclose(row, whole, atol=1e-4)


def test_a_forward_that_failed_half_way_can_be_made_again() -> None:
    model, experts = lively(SMALL)
    cache, prompt, token = SequenceCache(SMALL), torch.tensor([4, 5, 6]), torch.tensor([7])
    model.extend([prompt], [cache], experts)

    def fails_in_last_layer(layer: int, *rest: torch.Tensor) -> torch.Tensor:
        if layer == SMALL.layers - 1:
            raise ConnectionError("a shard died")
        return experts(layer, *rest)

    with pytest.raises(ConnectionError):
        model.extend([token], [cache], fails_in_last_layer)
    again = model.extend([token], [cache], experts)
    assert torch.allclose(again[0], model(torch.tensor([[4, 5, 6, 7]]), experts)[-1], atol=1e-4)


def test_no_sequences_at_all_still_give_a_gradient_path() -> None:
    model, experts = lively(SMALL)
    logits = model(torch.empty(0, 8, dtype=torch.long), experts)
    logits.sum().backward()
    assert logits.shape == (0, 50)
    assert model.model.embed_tokens.weight.grad is not None


def test_first_values_depend_on_seed_and_name_only() -> None:
    first = initial_expert(SMALL, (1, 3), seed=5)
    assert torch.equal(first.w1, initial_expert(SMALL, (1, 3), seed=5).w1)
    assert not torch.equal(first.w1, initial_expert(SMALL, (1, 2), seed=5).w1)
    assert not torch.equal(first.w1, initial_expert(SMALL, (1, 3), seed=6).w1)


def test_parameter_counts_are_those_that_the_planner_computes() -> None:
    for config in VARIANTS.values():
        model = MoeModel(config)
        dense = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert dense == config.dense_parameters, config
        one = initial_expert(config, (0, 0), 0)
        assert one.w1.numel() + one.w2.numel() == config.expert_parameters
        assert len(all_experts(config)) == config.layers * config.experts
