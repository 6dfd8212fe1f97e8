"""Nodes and headline figures as the page shows them: plain values, ready for JSON. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord
from scheduler.domain.jobs import Job
from scheduler.domain.ledger import Account
from scheduler.status_page.capacity import DeviceUse, Facts, total_use

NODE_CODES: Mapping[NodeState, str] = {
    NodeState.BUSY: "b",
    NodeState.SPARE: "s",
    NodeState.DRAINING: "d",
    NodeState.SUSPECT: "q",
    NodeState.LOST: "x",
}
"""One letter a node, so that 5,000 of them fit in one packet or two. A lent node's letter says what it does:
j joining, u useful, r rescale, i idle."""


@dataclass(frozen=True, slots=True)
class Books:
    """Device-hours since the books were opened."""

    borrowed_h: float = 0.0
    useful_h: float = 0.0
    rescale_h: float = 0.0
    idle_h: float = 0.0
    lost_h: float = 0.0

    @property
    def harvest(self) -> float | None:
        """Useful share of what was borrowed; None before anything was."""
        return self.useful_h / self.borrowed_h if self.borrowed_h else None


@dataclass(frozen=True, slots=True)
class HandBacks:
    """How reclaims went; `late` counts those that overran the owner's grace."""

    count: int = 0
    late: int = 0
    slowest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """The headline figures."""

    nodes: int
    nodes_lent: int
    devices: int
    borrowed: int
    useful: int
    rescale: int
    idle: int
    harvest: float | None
    books: Books
    hand_backs: HandBacks


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site and its nodes by name, in the order of the map's letters."""

    id: str
    connected: bool
    ray_version: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeMap:
    """One character a node, sites and names in order: its state, and its devices lent and at work (base 36)."""

    states: str
    lent: str
    used: str


@dataclass(frozen=True, slots=True)
class Cohorts:
    """Which nodes became idle together: an index into `names` for each node, -1 without a lease."""

    names: tuple[str, ...]
    of_node: tuple[int, ...]


def books(accounts: Iterable[Account]) -> Books:
    """The sum of all lines."""
    sums = [0, 0, 0, 0, 0]
    for line in accounts:
        sums[0] += line.borrowed_us
        sums[1] += line.useful_us
        sums[2] += line.rescale_us
        sums[3] += line.idle_us
        sums[4] += line.lost_us
    return Books(*(us / 3.6e9 for us in sums))


def hand_backs(reclaims: Iterable[ReclaimRecord]) -> HandBacks:
    """All hand-backs in figures."""
    records = list(reclaims)
    late = sum(record.free_s > record.grace_s for record in records)
    return HandBacks(len(records), late, max((record.free_s for record in records), default=0.0))


def totals(facts: Facts, uses: Mapping[LeaseKey, DeviceUse], sums: Books) -> Totals:
    """The headline figures; `sums` may be a few seconds old."""
    use = total_use(uses)
    return Totals(
        nodes=len(facts.nodes),
        nodes_lent=len({key.node for key in uses}),
        devices=sum(len(node.devices) for node in facts.nodes.values()),
        borrowed=use.borrowed,
        useful=use.useful,
        rescale=use.rescale,
        idle=use.idle,
        harvest=sums.harvest,
        books=sums,
        hand_backs=hand_backs(facts.reclaims),
    )


def ordered_nodes(facts: Facts) -> list[Node]:
    """By site, then by name with numbers in their natural order: the order of every per-node list."""
    return sorted(facts.nodes.values(), key=lambda node: (node.site, natural(node.id), node.id))


@lru_cache(maxsize=100_000)
def natural(name: str) -> tuple[tuple[str, int, str], ...]:
    """A sort key under which n9 comes before n10."""
    parts = re.findall(r"([^0-9]*)([0-9]*)", name)
    return tuple((text, len(number.lstrip("0")), number.lstrip("0")) for text, number in parts)


def sites(facts: Facts, nodes: Iterable[Node]) -> tuple[SiteView, ...]:
    """Every site that is connected or has nodes, in order."""
    names: dict[str, list[str]] = {site: [] for site in facts.sites}
    for node in nodes:
        names.setdefault(node.site, []).append(node.id)
    return tuple(_site(facts, site, names[site]) for site in sorted(names))


def _site(facts: Facts, site: str, nodes: list[str]) -> SiteView:
    known = facts.sites.get(site)
    return SiteView(site, bool(known and known.connected), known.ray_version if known else "", tuple(nodes))


def node_map(nodes: Iterable[Node], leases: Mapping[str, Lease], uses: Mapping[LeaseKey, DeviceUse]) -> NodeMap:
    """`leases` are the live ones by node."""
    states, lent, used = [], [], []
    for node in nodes:
        lease = leases.get(node.id)
        use = uses[lease.key] if lease else DeviceUse()
        states.append(node_code(node, lease, use))
        lent.append(_base36(use.borrowed))
        used.append(_base36(use.useful))
    return NodeMap("".join(states), "".join(lent), "".join(used))


def node_code(node: Node, lease: Lease | None, use: DeviceUse) -> str:
    """The node's letter on the map."""
    if node.state is not NodeState.LENT:
        return NODE_CODES[node.state]
    if lease is None or lease.state in (LeaseState.GRANTED, LeaseState.JOINING):
        return "j"
    if use.useful:
        return "u"
    return "r" if use.rescale else "i"


def _base36(number: int) -> str:
    return "0123456789abcdefghijklmnopqrstuvwxyz"[min(number, 35)]


def cohorts(nodes: Iterable[Node], leases: Mapping[str, Lease]) -> Cohorts:
    """Cohorts in the order in which they first occur on the map."""
    index: dict[str, int] = {}
    of_node = []
    for node in nodes:
        lease = leases.get(node.id)
        of_node.append(index.setdefault(lease.cohort, len(index)) if lease else -1)
    return Cohorts(tuple(index), tuple(of_node))


def placement(jobs: Iterable[Job], nodes: Iterable[Node]) -> dict[str, tuple[int, ...]]:
    """Where on the map each job that has workers runs."""
    index = {node.id: i for i, node in enumerate(nodes)}
    return {
        job.id: tuple(sorted({index[slot.lease.node] for slot in job.assignment.workers if slot.lease.node in index}))
        for job in jobs
        if job.assignment and job.assignment.workers
    }
