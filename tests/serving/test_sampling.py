"""Sampling: greedy is greedy, what is cut off is never drawn, and a replay draws the same."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.serving.params import SamplingParams
from runtime.serving.sampling import choose, sample, uniform

logits = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).map(torch.tensor)
seeds = st.integers(-(2**63), 2**63 - 1)


@given(seeds, st.integers(0, 10**6))
def test_the_random_number_depends_on_seed_and_position_alone(seed: int, position: int) -> None:
    assert 0 <= uniform(seed, position) < 1
    assert uniform(seed, position) == uniform(seed, position)


@given(logits, seeds, st.integers(0, 1000), st.floats(0.1, 2), st.floats(0.05, 1), st.integers(0, 10))
def test_only_kept_tokens_are_drawn_and_always_the_same(
    logits_V: torch.Tensor, seed: int, position: int, temperature: float, top_p: float, top_k: int
) -> None:
    params = SamplingParams(10, temperature, top_p, top_k, seed)
    token = choose(logits_V, params, position)
    assert token == choose(logits_V.clone(), params, position)
    better = int((logits_V > logits_V[token]).sum())
    if top_k:
        assert better < top_k
    probabilities = (logits_V.double() / temperature).softmax(0)
    before = float(probabilities[logits_V > logits_V[token]].sum())
    assert before < top_p + 1e-9


@given(logits, seeds)
def test_greedy_takes_the_first_of_the_best(logits_V: torch.Tensor, seed: int) -> None:
    token = choose(logits_V, SamplingParams(1, 0, seed=seed), 3)
    assert logits_V[token] == logits_V.max()


def test_draws_follow_the_probabilities() -> None:
    logits_V = torch.tensor([0.5, 0.3, 0.2]).log()
    params = SamplingParams(1, 1.0, seed=7)
    counts = torch.zeros(3)
    for position in range(4000):
        counts[choose(logits_V, params, position)] += 1
    assert torch.allclose(counts / 4000, torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_log_probabilities_are_the_models_own() -> None:
    logits_V = torch.tensor([1.0, 3.0, 2.0])
    sampled = sample(logits_V, SamplingParams(1, 0.0, logprobs=2), 0)
    assert sampled.token == 1
    assert sampled.logprob == pytest.approx(3 - math.log(math.e + math.e**3 + math.e**2), abs=1e-5)
    assert [token for token, _ in sampled.top] == [1, 2]


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -2}, {"temperature": 1e9}],
)
def test_senseless_parameters_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        SamplingParams(**{"max_tokens": 1, **fields})  # type: ignore[arg-type]


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(5, 0.7, 0.9, 40, 2**62, (0, 3), 4)
    assert SamplingParams.from_json(params.to_json()) == params
