"""Sampling: greedy is greedy, what is cut off is never drawn, and a replay draws the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.serving.params import SamplingParams
from runtime.serving.sampling import choose, kept, rescored, sample, uniform

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
    params = SamplingParams(10, temperature, top_p, top_k, seed=seed)
    token = choose(logits_V, params, position)
    assert token == choose(logits_V.clone(), params, position)
    better = int((logits_V > logits_V[token]).sum())
    if top_k:
        assert better < top_k
    probabilities = (logits_V.double() / temperature).softmax(0)
    before = float(probabilities[logits_V > logits_V[token]].sum())
    assert before < top_p + 1e-9


@given(logits, seeds, st.floats(0.1, 2), st.floats(0.01, 1))
def test_nothing_under_the_share_of_the_likeliest_is_drawn(
    logits_V: torch.Tensor, seed: int, temperature: float, min_p: float
) -> None:
    token = choose(logits_V, SamplingParams(1, temperature, min_p=min_p, seed=seed), 0)
    chances = (logits_V.double() / temperature).softmax(0)
    assert float(chances[token]) >= min_p * float(chances.max()) * (1 - 1e-9)


@given(seeds, st.floats(0.5, 0.999), st.floats(0.2, 2))
def test_sorting_the_likeliest_first_draws_what_sorting_all_does(seed: int, top_p: float, temperature: float) -> None:
    logits_V = torch.randn(3000, generator=torch.Generator().manual_seed(seed % 1000)) * 3
    chance_V, ids_V = (logits_V.double() / temperature).softmax(0).sort(descending=True, stable=True)
    left = int((chance_V.cumsum(0) < top_p).sum()) + 1
    _, ids_C = kept(logits_V, SamplingParams(1, temperature, top_p))
    assert ids_C is not None
    assert abs(len(ids_C) - left) <= 1  # where the sum meets top_p to the last bit
    count = min(left, len(ids_C))
    assert ids_C[:count].tolist() == ids_V[:count].tolist()


def test_penalties_and_bias_change_what_is_said() -> None:
    logits_V = torch.tensor([2.0, 1.875, -1.0, 0.5])

    def greedy(emitted: list[int], **fields: Any) -> int:
        return sample(logits_V, SamplingParams(1, **fields), len(emitted), [0], emitted).token

    assert greedy([], repetition_penalty=1.2) == 1  # token 0 is in the prompt
    assert greedy([], presence_penalty=1.0, frequency_penalty=1.0) == 0  # these look at the answer alone
    assert greedy([0], presence_penalty=0.2) == 1
    assert greedy([0], frequency_penalty=0.05) == 0
    assert greedy([0, 0, 0], frequency_penalty=0.05) == 1
    assert greedy([], bias=((3, 5.0),)) == 3
    assert rescored(logits_V, SamplingParams(1, repetition_penalty=2.0), [0, 2], []).tolist() == [1.0, 1.875, -2.0, 0.5]
    scored = sample(logits_V, SamplingParams(1, bias=((3, 5.0),), logprobs=0), 0)
    assert scored.logprob == pytest.approx(float(logits_V.log_softmax(0)[3]))


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
    [
        {"min_p": 1.5},
        {"repetition_penalty": 0},
        {"presence_penalty": 3},
        {"max_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -2},
        {"temperature": 1e9},
    ],
)
def test_senseless_parameters_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must"):
        SamplingParams(**{"max_tokens": 1, **fields})  # type: ignore[arg-type]


def test_parameters_survive_the_wire() -> None:
    params = SamplingParams(5, 0.7, 0.9, 40, 0.1, 1.2, 0.5, -0.5, ((3, 1.5),), 2**62, (0, 3), 4)
    assert SamplingParams.from_json(params.to_json()) == params
