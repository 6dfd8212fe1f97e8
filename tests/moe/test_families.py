"""Every architecture read from the folder that `transformers` writes, its logits against those of `transformers`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from runtime.moe.cache import SequenceCache
from runtime.moe.checkpoint import ModelFolder
from runtime.moe.description import examine
from runtime.moe.experts import LocalExperts
from runtime.moe.families import FAMILIES
from runtime.moe.key_value_pool import pooled_caches
from runtime.moe.model import MoeModel
from tests.moe.hf_models import VARIANTS, saved

LENGTHS = (5, 19, 1, 12)


@pytest.fixture(scope="module", params=VARIANTS)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, MoeModel, LocalExperts]:
    """Their model and ours, read from the same folder."""
    folder = tmp_path_factory.mktemp("model")
    theirs = saved(request.param, folder)
    examine(folder)
    with ModelFolder(folder) as opened:
        return theirs, opened.dense_model(), opened.experts()


def ids(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 60, shape, generator=torch.Generator().manual_seed(seed))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert torch.allclose(ours, theirs, atol=1e-4, rtol=0), float((ours - theirs).abs().max())


@torch.no_grad()
def test_prefill_of_whole_sequences(both: tuple[Any, MoeModel, LocalExperts]) -> None:
    theirs, model, experts = both
    rows = ids(3, 23)
    expected = theirs(rows).logits
    assert expected.std() > 0.3  # else the comparison would say little
    close(model(rows, experts), expected.flatten(0, 1))


@torch.no_grad()
def test_a_long_context(both: tuple[Any, MoeModel, LocalExperts]) -> None:
    theirs, model, experts = both
    rows = ids(1, 400)
    close(model(rows, experts), theirs(rows).logits[0])


@torch.no_grad()
def test_decoding_with_a_cache(both: tuple[Any, MoeModel, LocalExperts]) -> None:
    theirs, model, experts = both
    rows, cache = ids(1, 30), SequenceCache(model.config, capacity=2)
    held = theirs(rows[:, :11], use_cache=True)
    close(model.extend([rows[0, :11]], [cache], experts)[0], held.logits[0, -1])
    for start, end in ((11, 12), (12, 13), (13, 20), *((n, n + 1) for n in range(20, 30))):
        held = theirs(rows[:, start:end], past_key_values=held.past_key_values, use_cache=True)
        close(model.extend([rows[0, start:end]], [cache], experts)[0], held.logits[0, -1])


@pytest.mark.parametrize("is_pooled", [False, True])
@torch.no_grad()
def test_sequences_of_mixed_lengths_against_a_padded_batch(
    both: tuple[Any, MoeModel, LocalExperts], is_pooled: bool
) -> None:
    theirs, model, experts = both
    rows, longest = [ids(n, seed=n) for n in LENGTHS], max(LENGTHS)
    padded, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    for n, row in enumerate(rows):
        padded[n, longest - len(row) :], mask[n, longest - len(row) :] = row, 1
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    held = theirs(padded, attention_mask=mask, position_ids=positions, use_cache=True)
    new_cache = pooled_caches(model.config, "cpu", torch.float32) if is_pooled else partial(SequenceCache, model.config)
    caches = [new_cache(8) for _ in rows]
    close(model.extend(rows, caches, experts), held.logits[:, -1])
    following = ids(len(rows), 1, seed=9)
    mask = torch.cat((mask, torch.ones(len(rows), 1, dtype=torch.long)), dim=1)
    after = theirs(
        following, attention_mask=mask, position_ids=positions[:, -1:] + 1, past_key_values=held.past_key_values
    )
    close(model.extend(list(following), caches, experts), after.logits[:, -1])


def test_counts_of_parameters_are_those_of_transformers(both: tuple[Any, MoeModel, LocalExperts]) -> None:
    theirs, model, experts = both
    config = model.config
    assert config.parameters == theirs.num_parameters()
    assert config.dense_parameters == sum(p.numel() for p in model.parameters()) - _balancing(model)
    for expert in experts.experts.values():
        assert sum(part.numel() for part in expert) == config.expert_parameters
    assert len(experts.experts) == config.expert_layers * config.experts


def _balancing(model: MoeModel) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if name.endswith("e_score_correction_bias"))


def test_every_family_has_a_variant_here() -> None:
    assert {kind for kind, _ in VARIANTS.values()} == set(FAMILIES) - {"yuan", "fallow"}
