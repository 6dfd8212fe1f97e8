"""How tokens of several sequences lie one after another in one flat batch.

T tokens of the batch, N sequences in it. Everything but attention and filtering treats tokens alone, so a batch of
equal sequences (training), one prompt, or a mixture of prompts and single decode tokens (serving) is the same T rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from runtime.moe.key_value_pool import DecodeStep


@dataclass(frozen=True)
class Packing:
    """`lengths[n]` new tokens of sequence n, which come after the `offsets[n]` tokens that its cache already holds.

    `step`: the leading sequences with one new token, where they can be attended to together.
    """

    lengths: tuple[int, ...]
    offsets: tuple[int, ...]
    device: torch.device
    step: DecodeStep | None = None

    @staticmethod
    def uniform(sequences: int, length: int, device: torch.device) -> Packing:
        """`sequences` whole sequences of `length` tokens each, as in training."""
        return Packing((length,) * sequences, (0,) * sequences, device)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Row of each sequence's first new token."""
        rows, row = [], 0
        for length in self.lengths:
            rows.append(row)
            row += length
        return tuple(rows)

    @cached_property
    def start_rows(self) -> Tensor:
        """`starts` as a tensor (N,)."""
        return torch.tensor(self.starts, dtype=torch.long).to(self.device)

    @cached_property
    def last_rows(self) -> Tensor:
        """Row of each sequence's last new token, (N,)."""
        ends = zip(self.starts, self.lengths, strict=True)
        return torch.tensor([start + length - 1 for start, length in ends], dtype=torch.long).to(self.device)

    @cached_property
    def positions(self) -> Tensor:
        """Position of each token in its own sequence, (T,)."""
        if not self.lengths:
            return torch.empty(0, dtype=torch.long, device=self.device)
        ranges = zip(self.offsets, self.lengths, strict=True)
        return torch.cat([torch.arange(start, start + count) for start, count in ranges]).to(self.device)

    @cached_property
    def uniform_length(self) -> int | None:
        """The length of all sequences if they are equal and start at 0, else None."""
        lengths = set(self.lengths)
        return lengths.pop() if len(lengths) == 1 and not any(self.offsets) else None
