"""Which shard holds which expert, and whom to ask. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Address = tuple[str, int]
ExpertId = tuple[int, int]
"""(layer, expert)"""


@dataclass(frozen=True, slots=True)
class Routing:
    """A complete table; a later `epoch` replaces an earlier one as a whole."""

    epoch: int = 0
    shards: Mapping[str, Address] = field(default_factory=dict)
    experts: Mapping[ExpertId, tuple[str, ...]] = field(default_factory=dict)

    def missing(self, layers: int, experts: int) -> list[ExpertId]:
        """Experts of a model that no shard of the table holds."""
        return [(i, e) for i in range(layers) for e in range(experts) if not self.experts.get((i, e))]


def table(epoch: int, shards: Mapping[str, tuple[Address, Iterable[ExpertId]]]) -> Routing:
    """The table over shards given as name -> (address, experts that it has loaded)."""
    holders: dict[ExpertId, list[str]] = {}
    for name in sorted(shards):
        for expert in shards[name][1]:
            holders.setdefault(expert, []).append(name)
    return Routing(
        epoch=epoch,
        shards={name: shards[name][0] for name in sorted(shards)},
        experts={expert: tuple(names) for expert, names in sorted(holders.items())},
    )


def share_out(
    routing: Routing, layer: int, rows: Mapping[int, int], avoid: Sequence[Collection[str]] = ()
) -> tuple[dict[str, list[int]], list[int]]:
    """Choose a copy for each of a layer's experts, so that the shards' rows are about even.

    `rows` maps expert -> how many tokens go to it. Shards in the first set of `avoid` are never asked; those in
    later sets only where no other copy is left. Returns shard -> experts, and the experts without any copy.
    """
    dead = avoid[0] if avoid else ()
    reluctant = avoid[1] if len(avoid) > 1 else ()
    load: dict[str, int] = {}
    chosen: dict[str, list[int]] = {}
    orphans: list[int] = []
    for expert in sorted(rows, key=lambda e: (-rows[e], e)):
        copies = [name for name in routing.experts.get((layer, expert), ()) if name not in dead]
        if not copies:
            orphans.append(expert)
            continue
        shard = copies[0]
        if len(copies) > 1:
            shard = min(copies, key=lambda name: (name in reluctant, load.get(name, 0), name))
        load[shard] = load.get(shard, 0) + rows[expert]
        chosen.setdefault(shard, []).append(expert)
    return {shard: sorted(experts) for shard, experts in sorted(chosen.items())}, sorted(orphans)
