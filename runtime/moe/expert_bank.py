# ruff: noqa: N815 - tensors carry their dimensions in fields too
"""Experts for serving, laid out as their device runs them fastest: matrices packed for a CPU, those of a layer side by
side for a GPU, where one launch for each product of each expert leaves the device waiting for its host.

N rows, E experts held of a layer, D hidden size, F expert size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from runtime.moe.experts import AnyExpert, ExpertId, ExpertWeights, LocalExperts, copied, run_segments
from runtime.moe.grouped_experts import ALIGNED, products
from runtime.moe.packed import PackedExpert, packed_expert


class ExpertStack(NamedTuple):
    """Gated SiLU experts of one layer in two tensors."""

    places: dict[int, int]  # of each expert in them
    w1_EFD: Tensor  # (E, 2 F, D)
    w2_EDF: Tensor

    @staticmethod
    def of(experts: Mapping[int, ExpertWeights]) -> ExpertStack:
        """A copy of these experts."""
        ids = tuple(sorted(experts))
        places = {e: place for place, e in enumerate(ids)}
        return ExpertStack(places, *(torch.stack([experts[e][part] for e in ids]) for part in (0, 1)))

    def experts(self) -> dict[int, AnyExpert]:
        """Each expert as a view."""
        return {e: ExpertWeights(self.w1_EFD[n], self.w2_EDF[n]) for e, n in self.places.items()}

    def run(self, x_ND: Tensor, experts: Sequence[int], counts: Sequence[int]) -> Tensor:
        """See `ExpertBank.run`."""
        rows_of = [0] * len(self.places)
        for expert, count in zip(experts, counts, strict=True):
            rows_of[self.places[expert]] = count
        return products(x_ND, rows_of, self.w1_EFD, self.w2_EDF)[0]


class ExpertBank:
    """Some experts of a model. One thread adds and drops; any may run what was there when it began."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self._device, self._dtype = device, dtype
        self._experts: dict[ExpertId, AnyExpert | PackedExpert] = {}
        self._stacks: dict[int, ExpertStack] = {}

    @property
    def held(self) -> frozenset[ExpertId]:
        """What is here now."""
        return frozenset(self._experts)

    def add(self, experts: Mapping[ExpertId, AnyExpert]) -> None:
        """Hold copies of these too."""
        fresh = {key: packed_expert(expert) or copied(expert, self._device) for key, expert in experts.items()}
        self._replace({**self._experts, **fresh}, {layer for layer, _ in fresh})

    def drop(self, experts: Iterable[ExpertId]) -> None:
        """Free these experts' memory."""
        gone = set(experts) & self._experts.keys()
        kept = {key: expert for key, expert in self._experts.items() if key not in gone}
        self._replace(kept, {layer for layer, _ in gone})

    def run(self, layer: int, x_ND: Tensor, experts: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Outputs (N, D) on this bank's device, in the rows' type: the first `counts[0]` rows through `experts[0]`, and
        so on; experts ascend. Raises KeyError for one that is not here."""
        rows_ND, stack, held = x_ND.to(self._device, self._dtype), self._stacks.get(layer), self._experts
        if stack is None:
            return run_segments(rows_ND, counts, [held[layer, e] for e in experts]).to(x_ND.dtype)
        return stack.run(rows_ND, experts, counts).to(x_ND.dtype)

    def _replace(self, experts: dict[ExpertId, AnyExpert | PackedExpert], changed: set[int]) -> None:
        stacks = {layer: stack for layer, stack in self._stacks.items() if layer not in changed}
        for layer in changed:
            of_layer = {e: expert for (at, e), expert in experts.items() if at == layer}
            if stack := self._stacked(of_layer):
                stacks[layer] = stack
                experts.update({(layer, e): view for e, view in stack.experts().items()})
        self._experts, self._stacks = experts, stacks

    def _stacked(self, experts: dict[int, AnyExpert | PackedExpert]) -> ExpertStack | None:
        plain = {e: expert for e, expert in experts.items() if isinstance(expert, ExpertWeights)}
        if self._dtype != torch.bfloat16 or not plain or len(plain) < len(experts):
            return None
        is_aligned = not any(size % ALIGNED for size in next(iter(plain.values())).w2.shape)
        return ExpertStack.of(plain) if is_aligned else None


class BankExperts(LocalExperts):
    """All experts of a model from a bank: an `ExpertExecutor`."""

    def __init__(self, bank: ExpertBank, experts_per_layer: int) -> None:
        super().__init__({}, experts_per_layer)
        self._bank = bank

    def _run_sorted(self, layer: int, x_ND: Tensor, counts: list[int]) -> Tensor:
        wanted = [e for e, count in enumerate(counts) if count]
        return self._bank.run(layer, x_ND, wanted, [counts[e] for e in wanted])
