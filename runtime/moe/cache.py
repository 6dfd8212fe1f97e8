"""What decoding keeps of a sequence: keys, values, and the last two inputs of every localised filter.

L tokens held, G key and value heads, d head size, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from protocol.models import ModelConfig


class CachePart(NamedTuple):
    """Some consecutive tokens of a sequence's cache, in memory of their own."""

    keys: Tensor  # (layers, G, T, d)
    values: Tensor
    filter_inputs: Tensor  # (layers, 2, D) after the part's last token; (0, 2, D) where that is not known or needed


class KeyValues(Protocol):
    """Where a sequence's keys and values lie: in buffers of its own, or in a pool (`runtime.moe.key_value_pool`)."""

    @property
    def bytes(self) -> int:
        """Memory that is this sequence's."""

    def write(self, layer: int, start: int, keys_GTd: Tensor, values_GTd: Tensor) -> None:
        """Set a layer's tokens from `start` on. Makes room as it needs."""

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """A layer's first `end` tokens, (G, L, d) each."""

    def copy_out(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Tokens `start` to `end` of all layers, (layers, G, T, d) each, in memory of their own."""

    def restore(self, start: int, keys: Tensor, values: Tensor) -> None:
        """Set all layers' tokens from `start` on; the inverse of `copy_out`."""


class OwnBuffers:
    """Keys and values of one sequence in one piece: what a CPU reads fastest."""

    def __init__(self, config: ModelConfig, capacity: int, device: str, dtype: torch.dtype) -> None:
        shape = (config.layers, config.cache_heads, max(capacity, 1))
        self._keys = torch.empty(*shape, config.cache_key_size, device=device, dtype=dtype)
        self._values = torch.empty(*shape, config.cache_value_size, device=device, dtype=dtype)

    @property
    def bytes(self) -> int:
        """See `KeyValues`, as for the methods."""
        return self._keys.nbytes + self._values.nbytes

    def write(self, layer: int, start: int, keys_GTd: Tensor, values_GTd: Tensor) -> None:
        end = start + keys_GTd.shape[1]
        self._reserve(end)
        self._keys[layer, :, start:end] = keys_GTd
        self._values[layer, :, start:end] = values_GTd

    def read(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        return self._keys[layer, :, :end], self._values[layer, :, :end]

    def copy_out(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        return self._keys[:, :, start:end].clone(), self._values[:, :, start:end].clone()

    def restore(self, start: int, keys: Tensor, values: Tensor) -> None:
        end = start + keys.shape[2]
        self._reserve(end)
        self._keys[:, :, start:end] = keys
        self._values[:, :, start:end] = values

    def _reserve(self, length: int) -> None:
        capacity = self._keys.shape[2]
        if length <= capacity:
            return
        more = max(capacity, length - capacity)
        self._keys, self._values = (
            torch.cat([held, held.new_empty(*held.shape[:2], more, held.shape[3])], dim=2)
            for held in (self._keys, self._values)
        )


class SequenceCache:
    """Attention and filter state of one sequence, `length` tokens in every layer.

    A forward pass writes behind `length` and beside `filter_inputs`; only `advance` makes that count. So a pass that
    failed half way is simply run again.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int = 64,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        key_values: KeyValues | None = None,
    ) -> None:
        self.length = 0
        self.key_values = key_values or OwnBuffers(config, capacity, device, dtype)
        # [:, 0] is the input before the last, [:, 1] the last one
        filters = config.layers if config.localised_filtering else 0
        self.filter_inputs = torch.zeros(filters, 2, config.hidden_size, device=device, dtype=dtype)
        self._next_filter_inputs = torch.zeros_like(self.filter_inputs)

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.key_values.bytes + self.filter_inputs.nbytes

    def append(self, layer: int, keys_GTd: Tensor, values_GTd: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's new keys and values; returns all of them, (G, L + T, d) each. See `ModelConfig.cache_*`."""
        self.key_values.write(layer, self.length, keys_GTd, values_GTd)
        return self.key_values.read(layer, self.length + keys_GTd.shape[1])

    def remember(self, layer: int, inputs_2D: Tensor) -> None:
        """The last two inputs of a layer's filter, once this pass is over."""
        self._next_filter_inputs[layer] = inputs_2D

    def advance(self, tokens: int) -> None:
        """The pass is over: all layers have taken `tokens` more tokens."""
        self.length += tokens
        self.filter_inputs, self._next_filter_inputs = self._next_filter_inputs, self.filter_inputs

    def copy_out(self, start: int, end: int) -> CachePart:
        """Tokens `start` to `end`, of those that it holds."""
        filters = self.filter_inputs if end == self.length else self.filter_inputs[:0]
        return CachePart(*self.key_values.copy_out(start, end), filters.clone())

    def restore(self, parts: Sequence[CachePart]) -> None:
        """Take over a sequence's first tokens, part by part. The cache is empty; the last part knows its filters."""
        for part in parts:
            self.key_values.restore(self.length, part.keys, part.values)
            self.length += part.keys.shape[2]
            if len(part.filter_inputs):
                self.filter_inputs.copy_(part.filter_inputs)
