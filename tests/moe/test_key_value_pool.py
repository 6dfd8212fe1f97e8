"""Caches in a pool hold what caches of their own hold, and nobody gets a block twice."""

from __future__ import annotations

import gc
from itertools import pairwise

import torch

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache
from runtime.moe.key_value_pool import BLOCK, KeyValuePool, PooledRows, decode_step, pooled_caches

CONFIG = ModelConfig(vocab_size=9, hidden_size=8, layers=2, heads=2, experts=2, experts_per_token=1, expert_size=8)


def filled(cache: SequenceCache, tokens: int, seed: int) -> SequenceCache:
    generator = torch.Generator().manual_seed(seed)
    shape = (CONFIG.cache_heads, tokens, CONFIG.cache_key_size)
    for layer in range(CONFIG.layers):
        cache.append(layer, torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
    cache.advance(tokens)
    return cache


def test_what_is_copied_out_of_one_kind_restores_the_other() -> None:
    new = pooled_caches(CONFIG, "cpu", torch.float32)
    tokens = 2 * BLOCK + 5
    own, pooled = filled(SequenceCache(CONFIG), tokens, 1), filled(new(3), tokens, 1)
    ends = (0, 7, BLOCK + 1, tokens)
    parts = [pooled.copy_out(start, end) for start, end in pairwise(ends)]
    for part, start, end in zip(parts, ends[:-1], ends[1:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, own.copy_out(start, end), strict=True))
    for fresh in (SequenceCache(CONFIG), new(1)):
        fresh.restore(parts)
        assert fresh.length == tokens
        assert all(torch.equal(a, b) for a, b in zip(fresh.copy_out(0, tokens), own.copy_out(0, tokens), strict=True))


def test_a_block_has_one_owner_and_goes_back_with_it() -> None:
    pool = KeyValuePool(CONFIG, "cpu", torch.float32)
    held = [PooledRows(pool, tokens) for tokens in (1, BLOCK, BLOCK + 1, 5 * BLOCK)]
    blocks = [block for rows in held for block in rows.blocks]
    assert len(blocks) == len(set(blocks)) == 1 + 1 + 2 + 5
    rows = pool.keys.shape[1]
    del held
    gc.collect()
    assert sorted(PooledRows(pool, 9 * BLOCK).blocks) == sorted(blocks)
    assert pool.keys.shape[1] == rows


def test_only_leading_sequences_with_one_new_token_go_together() -> None:
    new = pooled_caches(CONFIG, "cpu", torch.float32)
    caches = [filled(new(4), tokens, 2) for tokens in (3, BLOCK, 4)]
    assert decode_step(caches, (1, 1, 2)).count == 2  # type: ignore[union-attr]
    assert decode_step(caches, (2, 1, 1)) is None
    assert decode_step([filled(SequenceCache(CONFIG), 3, 2)], (1,)) is None


def test_a_step_sees_its_own_tokens_alone() -> None:
    new = pooled_caches(CONFIG, "cpu", torch.float32)
    lengths = (3, BLOCK, 2 * BLOCK - 1)
    caches = [filled(new(4), tokens, tokens) for tokens in lengths]
    step = decode_step(caches, (1, 1, 1))
    assert step is not None
    fresh = torch.randn(3, CONFIG.cache_heads, CONFIG.cache_key_size)
    keys, values = step.extended(1, fresh, -fresh)
    for n, (cache, tokens) in enumerate(zip(caches, lengths, strict=True)):
        seen = step.seen(None)[n, 0, 0]
        assert seen.tolist() == [place <= tokens for place in range(len(seen))]
        assert torch.equal(keys[n, :, :tokens], cache.copy_out(0, tokens).keys[1])
        assert torch.equal(keys[n, :, tokens], fresh[n])
        assert torch.equal(values[n, :, tokens], -fresh[n])
        assert step.seen(2)[n].sum() == min(2, tokens + 1)
