"""A packed model says what the plain one says, to rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from runtime.moe.cache import SequenceCache
from runtime.moe.experts import ClampedExpert, ExpertWeights
from runtime.moe.packed import can_pack, packed, packed_expert
from runtime.moe.reading import ModelFolder
from tests.moe.hf_models import saved

pytestmark = pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="matrices are not packed on such a CPU")


@pytest.mark.parametrize("name", ["llama", "qwen2_moe", "deepseek_v3"])
def test_a_packed_model_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path)
    with ModelFolder(tmp_path) as opened:
        plain, model, experts = opened.dense_model(), packed(opened.dense_model()), opened.experts()
    prompt = torch.arange(3, 20)
    wanted = plain.extend([prompt], [SequenceCache(plain.config)], experts)
    assert torch.allclose(model.extend([prompt], [SequenceCache(plain.config)], experts), wanted, atol=1e-4)
    assert len(list(model.parameters())) < len(list(plain.parameters()))


@pytest.mark.parametrize("rows", [1, 3, 16, 70])
def test_a_packed_expert_gives_the_same(rows: int) -> None:
    expert, x_ND = ExpertWeights(torch.randn(96, 32) / 6, torch.randn(32, 48) / 6), torch.randn(rows, 32)
    packed_one = packed_expert(expert)
    assert packed_one is not None
    assert torch.allclose(packed_one(x_ND), expert(x_ND), atol=1e-4)


def test_other_numbers_and_other_experts_stay_as_they_are() -> None:
    half = ExpertWeights(torch.zeros(4, 2, dtype=torch.bfloat16), torch.zeros(2, 2, dtype=torch.bfloat16))
    assert packed_expert(half) is None
    assert packed_expert(ClampedExpert(torch.zeros(4, 2), torch.zeros(2, 2), torch.zeros(4), torch.zeros(2))) is None
