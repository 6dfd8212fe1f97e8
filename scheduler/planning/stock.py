"""The free devices of a pool, kept in the orders in which jobs choose them, so that thousands of jobs can choose.

`together` is for workers that had better leave at once, `apart` for those that stand in for each other. What a job
takes is gone for the next one; what it could not use after all is given back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from scheduler.domain.cluster import LeaseKey
from scheduler.planning.lasting import Lasting
from scheduler.planning.view import Place, Spot, place_of

TRAINING_FOR_S = 900.0
SERVING_FOR_S = 3600.0
"""A node is the better, the likelier it lasts so long."""


class Stock:
    """See the module."""

    def __init__(self, free: Mapping[Place, Spot], lasting: Lasting) -> None:
        self._spots = dict(free)
        self._lasting = lasting
        self._least_bytes: int | None = None  # memory of the smallest, once somebody asked
        self._together: _Together | None = None
        self._apart: _Apart | None = None

    def __len__(self) -> int:
        return len(self._spots)

    def fitting(self, memory_bytes: int) -> Stock:
        """Those with so much memory; what is taken has to be taken here all the same."""
        if self._least_bytes is None:
            self._least_bytes = min((spot.device.memory_bytes for spot in self._spots.values()), default=0)
        if memory_bytes <= self._least_bytes:
            return self
        large = {place: s for place, s in self._spots.items() if s.device.memory_bytes >= memory_bytes}
        return self if len(large) == len(self._spots) else Stock(large, self._lasting)

    def take(self, spots: Iterable[Spot]) -> None:
        """These are no longer free."""
        for spot in spots:
            del self._spots[place_of(spot)]
            for order in self._orders():
                order.take(spot)

    def give_back(self, spots: Iterable[Spot]) -> None:
        """These are free again."""
        for spot in spots:
            self._spots[place_of(spot)] = spot
            for order in self._orders():
                order.put(spot)

    def together(self, homes: Iterable[LeaseKey], cohorts: Iterable[str]) -> Iterator[Spot]:
        """Spots for a job that is on the leases `homes` already, of these cohorts: its own cohorts first, then the one
        that is likeliest to last, the largest of equals. Of a cohort, its own leases first, then what lasts, then
        whole nodes."""
        if self._together is None:
            self._together = _Together(self._spots.values(), self._lasting)
        return self._together.spots({home for home in homes if home in self._together.sizes}, set(cohorts))

    def apart(self, nodes: Collection[str], cohorts: Iterable[str]) -> Iterator[Spot]:
        """Spots of which the best is one, for a job that judges these nodes and cohorts each by itself, all others
        alike, and among equals goes by what lasts."""
        if self._apart is None:
            self._apart = _Apart(self._spots.values(), self._lasting)
        return self._apart.spots(nodes, set(cohorts))

    def chance(self, spot: Spot) -> float:
        """That a spot lasts for serving, without what is only noise."""
        return _serving_chance(spot, self._lasting)

    def _orders(self) -> Iterator[_Together | _Apart]:
        if self._together is not None:
            yield self._together
        if self._apart is not None:
            yield self._apart


# --- together --------------------------------------------------------------------------------------------------

_Rank = tuple[float, int, str]


@dataclass(slots=True)
class _Cohort:
    """One cohort's free spots: by place, and the best first."""

    by_place: list[tuple[Place, Spot]] = field(default_factory=list)
    by_rank: list[tuple[float, int, Place, Spot]] = field(default_factory=list)
    rank: _Rank = (0.0, 0, "")


class _Together:
    """Cohorts by rank, and in each its spots by rank. `sizes`: free devices of each lease."""

    def __init__(self, spots: Iterable[Spot], lasting: Lasting) -> None:
        self._lasting = lasting
        self._cohorts: dict[str, _Cohort] = {}
        self._order: list[_Rank] = []
        self.sizes: Counter[LeaseKey] = Counter()
        for spot in spots:
            self.sizes[spot.lease.key] += 1
            self._cohorts.setdefault(spot.lease.cohort, _Cohort()).by_place.append((place_of(spot), spot))
        for name, cohort in self._cohorts.items():
            cohort.by_place.sort(key=_place)
            cohort.by_rank = sorted(self._entry(spot) for _, spot in cohort.by_place)
            cohort.rank = self._rank(name, cohort)
        self._order = sorted(cohort.rank for cohort in self._cohorts.values())

    def spots(self, homes: set[LeaseKey], cohorts: set[str]) -> Iterator[Spot]:
        """See `Stock.together`."""
        own = sorted(self._cohorts[name].rank for name in cohorts if name in self._cohorts)
        for *_, name in own:
            at_home = [self._entry(spot) for home in homes for spot in self._on(name, home)]
            yield from (spot for *_, spot in sorted(at_home))
            yield from (spot for *_, spot in self._cohorts[name].by_rank if spot.lease.key not in homes)
        for *_, name in self._order:
            if name not in cohorts:
                yield from (spot for *_, spot in self._cohorts[name].by_rank)

    def take(self, spot: Spot) -> None:
        """It is no longer free."""
        cohort = self._cohorts[spot.lease.cohort]
        del cohort.by_place[bisect_left(cohort.by_place, place_of(spot), key=_place)]
        self._change(spot, -1, cohort)
        if not cohort.by_place:
            del self._cohorts[spot.lease.cohort]

    def put(self, spot: Spot) -> None:
        """It is free again."""
        cohort = self._cohorts.setdefault(spot.lease.cohort, _Cohort())
        self._change(spot, +1, cohort)
        insort(cohort.by_place, (place_of(spot), spot), key=_place)
        insort(cohort.by_rank, self._entry(spot))
        self._order_anew(spot.lease.cohort, cohort)

    def _change(self, spot: Spot, by: int, cohort: _Cohort) -> None:
        """One device more or less of the spot's lease is free: its other spots change their rank, and so the cohort."""
        mates = self._on(spot.lease.cohort, spot.lease.key)
        for other in mates if by > 0 else (*mates, spot):
            del cohort.by_rank[bisect_left(cohort.by_rank, self._entry(other))]
        self.sizes[spot.lease.key] += by
        for other in mates:
            insort(cohort.by_rank, self._entry(other))
        if not self.sizes[spot.lease.key]:
            del self.sizes[spot.lease.key]
        self._order_anew(spot.lease.cohort, cohort)

    def _order_anew(self, name: str, cohort: _Cohort) -> None:
        at = bisect_left(self._order, cohort.rank)
        if at < len(self._order) and self._order[at] == cohort.rank:
            del self._order[at]
        if cohort.by_place:
            cohort.rank = self._rank(name, cohort)
            insort(self._order, cohort.rank)

    def _on(self, name: str, lease: LeaseKey) -> list[Spot]:
        """A cohort's free spots on a lease."""
        if lease not in self.sizes or name not in self._cohorts:
            return []
        by_place = self._cohorts[name].by_place
        first = bisect_left(by_place, (lease.node, lease.epoch, ""), key=_place)
        return [spot for _, spot in by_place[first : first + self.sizes[lease]] if spot.lease.key == lease]

    def _entry(self, spot: Spot) -> tuple[float, int, Place, Spot]:
        chance = self._lasting.chance_by_age(spot.lease, TRAINING_FOR_S)  # a cohort's neighbours stay side by side
        return -chance, -self.sizes[spot.lease.key], place_of(spot), spot

    def _rank(self, name: str, cohort: _Cohort) -> _Rank:
        return -self._lasting.chance_by_age(cohort.by_place[0][1].lease, TRAINING_FOR_S), -len(cohort.by_place), name


def _place(entry: tuple[Place, Spot]) -> Place:
    return entry[0]


# --- apart -----------------------------------------------------------------------------------------------------

_Lasting = tuple[float, Place, Spot]


class _Apart:
    """Each cohort's spots by how they last, and the cohorts by their best."""

    def __init__(self, spots: Iterable[Spot], lasting: Lasting) -> None:
        self._lasting = lasting
        self._on_node: dict[str, list[Spot]] = {}
        self._cohorts: dict[str, list[_Lasting]] = {}
        for spot in spots:
            self._on_node.setdefault(spot.lease.key.node, []).append(spot)
            self._cohorts.setdefault(spot.lease.cohort, []).append(self._entry(spot))
        for entries in self._cohorts.values():
            entries.sort()
        self._heads = sorted(entries[0] for entries in self._cohorts.values())

    def spots(self, nodes: Collection[str], cohorts: set[str]) -> Iterator[Spot]:
        """All on these nodes; of these cohorts, and of all others together, what lasts longest on another node."""
        for node in sorted(nodes):
            for spot in self._on_node.get(node, ()):
                cohorts.add(spot.lease.cohort)
                yield spot
        for name in sorted(cohorts & self._cohorts.keys()):
            yield from islice((s for *_, s in self._cohorts[name] if s.lease.key.node not in nodes), 1)
        yield from islice((spot for *_, spot in self._heads if spot.lease.cohort not in cohorts), 1)

    def take(self, spot: Spot) -> None:
        """It is no longer free."""
        self._on_node[spot.lease.key.node].remove(spot)
        entries = self._cohorts[spot.lease.cohort]
        self._drop_head(entries)
        del entries[bisect_left(entries, self._entry(spot))]
        if entries:
            insort(self._heads, entries[0])
        else:
            del self._cohorts[spot.lease.cohort]

    def put(self, spot: Spot) -> None:
        """It is free again."""
        self._on_node[spot.lease.key.node].append(spot)
        entries = self._cohorts.setdefault(spot.lease.cohort, [])
        if entries:
            self._drop_head(entries)
        insort(entries, self._entry(spot))
        insort(self._heads, entries[0])

    def _drop_head(self, entries: list[_Lasting]) -> None:
        del self._heads[bisect_left(self._heads, entries[0])]

    def _entry(self, spot: Spot) -> _Lasting:
        return -_serving_chance(spot, self._lasting), place_of(spot), spot


def _serving_chance(spot: Spot, lasting: Lasting) -> float:
    return round(lasting.chance(spot.lease, SERVING_FOR_S), 3)
