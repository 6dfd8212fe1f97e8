"""Further copies of experts where the load has moved to since their placement was planned. Pure.

A placement follows the loads that were measured before its rescale, and nothing moves for news alone. Between rescales
a shard's spare slots may take a second copy of an expert that has become busy: it costs a read from the disk and no
worker. The next assignment, planned with the new loads, replaces all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from runtime.serving.routing import ExpertId
from runtime.site.controller import WorkerSlot

Hosts = Mapping[str, frozenset[ExpertId]]
"""shard -> experts that it holds"""

OLD_WEIGHT = 0.5
"""What earlier counts still weigh at each new one."""
FEWEST = 100.0
"""Tokens that an expert must have got on average before the counts of its layer say anything."""
HOT = 1.5
"""An expert gets a further copy with so many times the mean load of its layer, and loses it below the mean."""
WORTH = 0.1
"""A further copy must take so much off the busiest shard of its layer."""
SPARE = 0.25
"""Extras of a shard, at most, for each expert that it was planned to hold."""
MOVES = 8
"""At most so many copies are new at a time: each is read from the disk while its shard serves."""


@dataclass
class Drift:
    """The loads of a model's experts as they are counted, and the copies that follow them."""

    extras: dict[str, frozenset[ExpertId]] = field(default_factory=dict)
    _loads: list[float] = field(default_factory=list)

    def forget_copies(self) -> None:
        """A new placement was planned: it knows the loads."""
        self.extras = {}

    def count(self, tokens: Sequence[int]) -> None:
        """Take the newest counts, layer by layer, into the loads."""
        before = self._loads if len(self._loads) == len(tokens) else [0.0] * len(tokens)
        self._loads = [OLD_WEIGHT * old + new for old, new in zip(before, tokens, strict=True)]

    def beside(self, slots: Iterable[WorkerSlot]) -> tuple[WorkerSlot, ...]:
        """The slots with the extras among their experts."""
        extras = {shard: tuple(sorted(held)) for shard, held in self.extras.items()}
        return tuple(replace(slot, experts=slot.experts + extras.get(slot.worker, ())) for slot in slots)

    def follow(self, slots: Iterable[WorkerSlot], rooms: Mapping[str, int]) -> bool:
        """Choose the extras anew beside what is planned; `rooms`: how many more experts each shard's memory holds.
        Whether they changed."""
        planned = {slot.worker: frozenset(slot.experts) for slot in slots if slot.role == "shard"}
        layers = 1 + max((layer for held in planned.values() for layer, _ in held), default=-1)
        if not layers or not self._loads or len(self._loads) % layers:
            return False
        width = len(self._loads) // layers
        loads = {divmod(place, width): load for place, load in enumerate(self._loads)}
        before = self.extras
        spare = {
            shard: max(0, min(rooms.get(shard, 0), int(SPARE * len(held)) - len(before.get(shard, ()))))
            for shard, held in planned.items()
        }
        self.extras = further_copies(loads, planned, before, spare)
        return before != self.extras


def further_copies(
    loads: Mapping[ExpertId, float],
    planned: Hosts,
    extras: Hosts,
    spare: Mapping[str, int],
    moves: int = MOVES,
) -> dict[str, frozenset[ExpertId]]:
    """The extras from now on: of the present ones those that still have a load, and at most `moves` new ones, each in a
    spare slot and where it takes most off the busiest shard of a layer."""
    layers: dict[int, _Layer] = {}
    for layer in sorted({layer for layer, _ in loads}):
        of_layer = {expert: load for (at, expert), load in loads.items() if at == layer}
        if sum(of_layer.values()) >= FEWEST * len(of_layer):
            layers[layer] = _Layer.of(layer, of_layer, planned)
    chosen = {
        shard: {e for e in extras.get(shard, ()) if e[0] not in layers or layers[e[0]].is_warm(e[1])}
        for shard in planned
    }
    left = {shard: spare.get(shard, 0) + len(extras.get(shard, ())) - len(kept) for shard, kept in chosen.items()}
    for shard, kept in chosen.items():
        for layer, expert in sorted(kept):
            if layer in layers:
                layers[layer].add(expert, shard)
    for _ in range(moves):
        open_to = [shard for shard, slots in sorted(left.items()) if slots > 0]
        offers = [(*offer, at) for at, layer in layers.items() if (offer := layer.best(open_to))]
        if not offers:
            break
        _, expert, shard, at = max(offers, key=lambda offer: (offer[0], -offer[3]))
        layers[at].add(expert, shard)
        chosen[shard].add((at, expert))
        left[shard] -= 1
    return {shard: frozenset(kept) for shard, kept in chosen.items() if kept}


@dataclass
class _Layer:
    """One layer's experts on its shards; copies share a load evenly."""

    loads: dict[int, float]
    holders: dict[int, set[str]]
    busy: dict[str, float]  # of each shard

    @staticmethod
    def of(layer: int, loads: dict[int, float], hosts: Hosts) -> _Layer:
        """As placed."""
        holders = {e: {shard for shard, held in hosts.items() if (layer, e) in held} for e in loads}
        busy = {shard: sum(loads[e] / len(h) for e, h in holders.items() if shard in h) for shard in sorted(hosts)}
        return _Layer(loads, holders, busy)

    @property
    def mean(self) -> float:
        """Load of an expert."""
        return sum(self.loads.values()) / len(self.loads)

    def is_warm(self, expert: int) -> bool:
        """Whether a copy that is there is still of use."""
        return self.loads.get(expert, 0.0) >= self.mean

    def with_copy(self, expert: int, shard: str) -> dict[str, float]:
        """How busy the shards would be."""
        count, load = len(self.holders[expert]), self.loads[expert]
        eased = {name: self.busy[name] - load / count + load / (count + 1) for name in self.holders[expert]}
        return {**self.busy, **eased, shard: self.busy[shard] + load / (count + 1)}

    def add(self, expert: int, shard: str) -> None:
        """One further copy."""
        if shard not in self.holders[expert]:
            self.busy = self.with_copy(expert, shard)
            self.holders[expert].add(shard)

    def best(self, open_to: Sequence[str]) -> tuple[float, int, str] | None:
        """The copy that takes most off the busiest shard: how much of its load, which expert, where. None if none is
        worth it."""
        top = max(self.busy, key=lambda shard: self.busy[shard])
        found: list[tuple[float, int, str]] = []
        for expert in (e for e, h in self.holders.items() if top in h and self.loads[e] >= HOT * self.mean):
            for shard in (s for s in open_to if s not in self.holders[expert]):
                gain = 1.0 - max(self.with_copy(expert, shard).values()) / self.busy[top]
                found.append((gain, expert, shard))
        return max(
            (offer for offer in found if offer[0] >= WORTH), key=lambda offer: (offer[0], -offer[1]), default=None
        )
