# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""Keys and values of many sequences in one piece of memory, for accelerators: one decode step of them all is then a
few launches a layer, where a launch for each sequence leaves a GPU waiting for its host (docs/BENCHMARKS.md).

The pool is cut into blocks of rows, one row a token; a sequence has a list of blocks, wherever they are free.

L tokens, N sequences, B blocks of a sequence, G key and value heads, d head size.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache

BLOCK = 32
"""Rows of a block."""


class KeyValuePool:
    """Grows when it is full, and keeps what it has grown to. May be called from any thread.

    Rows that nobody has written are zero, not just any bits: padding is read with them, and a NaN would get through.
    """

    def __init__(self, config: ModelConfig, device: str, dtype: torch.dtype) -> None:
        shape = (config.layers, 0, config.cache_heads)
        self.keys = torch.empty(*shape, config.cache_key_size, device=device, dtype=dtype)  # (layers, rows, G, d)
        self.values = torch.empty(*shape, config.cache_value_size, device=device, dtype=dtype)
        self._free: list[int] = []
        self._lock = threading.Lock()

    def take(self, blocks: int) -> list[int]:
        """So many blocks, from now on the caller's."""
        with self._lock:
            if len(self._free) < blocks:
                self._grow(max(blocks - len(self._free), self.keys.shape[1] // BLOCK))
            return [self._free.pop() for _ in range(blocks)]

    def give_back(self, blocks: list[int]) -> None:
        """These blocks may be anybody's."""
        with self._lock:
            self._free += blocks

    def _grow(self, blocks: int) -> None:
        held = self.keys.shape[1]
        self.keys, self.values = (
            torch.cat((rows, rows.new_zeros(rows.shape[0], blocks * BLOCK, *rows.shape[2:])), dim=1)
            for rows in (self.keys, self.values)
        )
        self._free += reversed(range(held // BLOCK, held // BLOCK + blocks))


class PooledRows:
    """One sequence's blocks of a pool; see `KeyValues`. They go back when nobody has this any more."""

    def __init__(self, pool: KeyValuePool, capacity: int) -> None:
        self.pool = pool
        self.blocks: list[int] = []
        self._rows = torch.empty(0, dtype=torch.long, device=pool.keys.device)  # by token
        weakref.finalize(self, pool.give_back, self.blocks).atexit = False
        self.reserve(capacity)

    @property
    def bytes(self) -> int:
        """See `KeyValues`, as for the methods."""
        row = self.pool.keys[:, :1].nbytes + self.pool.values[:, :1].nbytes
        return len(self.blocks) * BLOCK * row

    def write(self, layer: int, start: int, keys_GTd: Tensor, values_GTd: Tensor) -> None:
        rows_T = self._at(start, start + keys_GTd.shape[1])
        self.pool.keys[layer].index_copy_(0, rows_T, keys_GTd.transpose(0, 1))
        self.pool.values[layer].index_copy_(0, rows_T, values_GTd.transpose(0, 1))

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        rows_L, pool = self._rows[:end], self.pool
        keys_LGd, values_LGd = (held[layer].index_select(0, rows_L) for held in (pool.keys, pool.values))
        return keys_LGd.transpose(0, 1), values_LGd.transpose(0, 1)

    def copy_out(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        rows_T, pool = self._rows[start:end], self.pool
        keys, values = (held.index_select(1, rows_T).transpose(1, 2) for held in (pool.keys, pool.values))
        return keys.contiguous(), values.contiguous()

    def restore(self, start: int, keys: Tensor, values: Tensor) -> None:
        rows_T = self._at(start, start + keys.shape[2])
        for held, part in ((self.pool.keys, keys), (self.pool.values, values)):
            held.index_copy_(1, rows_T, part.to(held.device).transpose(1, 2))

    def reserve(self, length: int) -> None:
        """Have room for so many tokens."""
        missing = -(-length // BLOCK) - len(self.blocks)
        if missing > 0:
            self.blocks += self.pool.take(missing)
            self._rows = rows_of(torch.tensor(self.blocks)).to(self._rows.device)

    def _at(self, start: int, end: int) -> Tensor:
        self.reserve(end)
        return self._rows[start:end]


def rows_of(blocks: Tensor) -> Tensor:
    """The rows of blocks (..., B), one after another: (..., B * BLOCK)."""
    return (blocks.unsqueeze(-1) * BLOCK + torch.arange(BLOCK)).flatten(-2)


@dataclass(frozen=True)
class DecodeStep:
    """One new token for each of the batch's first `count` sequences, whose keys and values all lie in one pool."""

    pool: KeyValuePool
    count: int
    new_N: Tensor  # each token's own row
    rows_NL: Tensor  # rows of all tokens of each sequence, padded
    ages_NL: Tensor  # how long before the newest token each lies; negative for padding

    def extended(self, layer: int, keys_NGd: Tensor, values_NGd: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values; returns all of them, (N, G, L, d) each."""
        all_of = []
        for held, new in ((self.pool.keys[layer], keys_NGd), (self.pool.values[layer], values_NGd)):
            held.index_copy_(0, self.new_N, new)
            all_of.append(held.index_select(0, self.rows_NL.flatten()).unflatten(0, self.rows_NL.shape))
        keys_NLGd, values_NLGd = all_of
        return keys_NLGd.transpose(1, 2), values_NLGd.transpose(1, 2)

    def seen(self, window: int | None) -> Tensor:
        """Which tokens the newest sees, (N, 1, 1, L)."""
        seen_NL = self.ages_NL >= 0
        if window is not None:
            seen_NL = seen_NL & (self.ages_NL < window)
        return seen_NL[:, None, None]


def decode_step(caches: Sequence[SequenceCache], lengths: Sequence[int]) -> DecodeStep | None:
    """The batch's leading sequences with one new token, as far as a pool holds their caches; None if there is none."""
    held: list[PooledRows] = []
    for cache, length in zip(caches, lengths, strict=True):
        if length != 1 or not isinstance(cache.key_values, PooledRows):
            break
        held.append(cache.key_values)
    if not held:
        return None
    ends_N = torch.tensor([cache.length for cache in caches[: len(held)]])
    for rows, end in zip(held, ends_N.tolist(), strict=True):
        rows.reserve(end + 1)
    wide = max(ends_N.tolist()) // BLOCK + 1
    table_NB = torch.tensor([[*rows.blocks[:wide], *[rows.blocks[0]] * (wide - len(rows.blocks))] for rows in held])
    rows_NL, pool = rows_of(table_NB), held[0].pool
    ages_NL = ends_N.unsqueeze(1) - torch.arange(rows_NL.shape[1])
    new_N = rows_NL.gather(1, ends_N.unsqueeze(1)).squeeze(1)
    return DecodeStep(pool, len(held), *(part.to(pool.keys.device) for part in (new_N, rows_NL, ages_NL)))


def cache_factory(config: ModelConfig, device: str, dtype: torch.dtype) -> Callable[[int], SequenceCache]:
    """Makes caches for so many tokens, of the kind that the device reads fastest."""
    if device == "cpu":
        return lambda capacity: SequenceCache(config, capacity, device, dtype)
    return pooled_caches(config, device, dtype)


def pooled_caches(config: ModelConfig, device: str, dtype: torch.dtype) -> Callable[[int], SequenceCache]:
    """Makes caches for so many tokens, all in one new pool."""
    pool = KeyValuePool(config, device, dtype)
    return lambda capacity: SequenceCache(config, capacity, device, dtype, PooledRows(pool, capacity))
