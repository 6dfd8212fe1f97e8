"""The inventory as the page shows it: plain values, ready for JSON. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord
from scheduler.domain.jobs import Job, JobState
from scheduler.domain.ledger import Account
from scheduler.domain.reasons import Reason
from scheduler.status_page.capacity import DeviceUse, Facts, total_use
from scheduler.status_page.traces import Traces, traces_loss

MAX_ENDED_JOBS = 30
MAX_JOBS = 300
MAX_RESCALES = 12
MAX_UNPLACED = 200

NODE_CODES: Mapping[NodeState, str] = {
    NodeState.BUSY: "b",
    NodeState.SPARE: "s",
    NodeState.DRAINING: "d",
    NodeState.SUSPECT: "q",
    NodeState.LOST: "x",
}
"""One letter a node, so that 5,000 of them fit in one packet or two. A lent node's letter says what it does:
j joining, u useful, r rescale, i idle."""

STATE_ORDER = (JobState.RUNNING, JobState.STARTING, JobState.ENDING, JobState.PARKED, JobState.QUEUED)


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


@dataclass(frozen=True, slots=True)
class RescaleView:
    """One rescale of a job."""

    at_s: float
    cause: str
    width: int
    stall_s: float
    steps_lost: int


@dataclass(frozen=True, slots=True)
class JobView:
    """One job. `curve` is its loss if `curve_is_loss`, else its rate."""

    id: str
    name: str
    kind: str
    user: str
    state: str
    width: int
    min_width: int
    max_width: int
    roles: tuple[tuple[str, int, int, int], ...]  # (role, now, min, max)
    step: int
    total: int
    loss: float | None
    rate: float | None
    rate_unit: str
    eta_s: float | None
    submitted_s: float
    started_s: float | None
    ended_s: float | None
    message: str
    endpoint: str
    output: str
    curve: tuple[float, ...]
    curve_is_loss: bool
    scaling: tuple[tuple[int, float], ...]
    rescales: tuple[RescaleView, ...]
    steps_lost: int
    losses_by_reclaim: int


@dataclass(frozen=True, slots=True)
class UnplacedView:
    """A job that does not run, or not at its full width, and why."""

    job: str
    name: str
    state: str
    code: str
    message: str
    remedy: str


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
    return sorted(facts.nodes.values(), key=lambda node: (node.site, natural(node.id)))


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key under which n9 comes before n10."""
    parts: list[tuple[int, int, str]] = []
    digits = text = ""
    for char in [*name, ""]:
        if char.isdecimal() and char.isascii():
            digits += char
            continue
        if digits:
            parts.append((0, int(digits), text))
            digits = text = ""
        text += char
    return [*parts, (1, 0, text)]


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


def shown_jobs(jobs: Iterable[Job]) -> list[Job]:
    """Live jobs, running ones first, then the last that ended; at most `MAX_JOBS`."""
    everything = list(jobs)
    live = [job for job in everything if job.state.is_live]
    ended = [job for job in everything if not job.state.is_live]
    live.sort(key=lambda job: (STATE_ORDER.index(job.state), job.submitted_s, job.id))
    ended.sort(key=lambda job: (-(job.ended_s or 0.0), job.id))
    return [*live[: MAX_JOBS - MAX_ENDED_JOBS], *ended[:MAX_ENDED_JOBS]]


def job_counts(jobs: Iterable[Job]) -> dict[str, int]:
    """How many jobs there are in each state."""
    return dict(sorted(Counter(job.state.value for job in jobs).items()))


def unplaced(jobs: Mapping[str, Job], reasons: Mapping[str, Reason]) -> tuple[UnplacedView, ...]:
    """Live jobs without all they want: those that do not run first, then in the order they were submitted."""
    waiting = [jobs[job] for job in reasons if job in jobs and jobs[job].state.is_live]
    waiting.sort(key=lambda job: (job.width > 0, job.submitted_s, job.id))
    return tuple(_unplaced(job, reasons[job.id]) for job in waiting[:MAX_UNPLACED])


def _unplaced(job: Job, reason: Reason) -> UnplacedView:
    return UnplacedView(job.id, job.name, job.state.value, reason.code, reason.message, reason.remedy)


def job_view(job: Job, traces: Traces) -> JobView:
    """One job."""
    trace = traces.of(job.id)
    progress = job.progress
    return JobView(
        id=job.id,
        name=job.name,
        kind=job.kind.value,
        user=job.user,
        state=job.state.value,
        width=job.width,
        min_width=job.min_width,
        max_width=job.max_width,
        roles=_roles(job),
        step=progress.step,
        total=progress.total,
        loss=finite(progress.loss) if traces_loss(job) and progress.step else None,
        rate=finite(progress.rate) if progress.rate_unit and job.state.is_live else None,
        rate_unit=progress.rate_unit,
        eta_s=_eta_s(job, trace.steps_per_s),
        submitted_s=job.submitted_s,
        started_s=job.started_s,
        ended_s=job.ended_s,
        message=job.message,
        endpoint=job.endpoint,
        output=job.output,
        curve=tuple(float(f"{point:.4g}") for point in trace.points),
        curve_is_loss=traces_loss(job),
        scaling=tuple((width, rate) for width, rate in job.curve if math.isfinite(rate)),
        rescales=tuple(
            RescaleView(r.at_s, r.cause, r.width, finite(r.stall_s) or 0.0, r.steps_lost)
            for r in job.rescales[-MAX_RESCALES:]
        ),
        steps_lost=job.steps_lost,
        losses_by_reclaim=job.losses_by_reclaim,
    )


def _roles(job: Job) -> tuple[tuple[str, int, int, int], ...]:
    have = Counter(slot.role for slot in job.assignment.workers) if job.assignment else Counter()
    return tuple((need.role.value, have[need.role], need.min, need.max) for need in job.needs)


def _eta_s(job: Job, steps_per_s: float) -> float | None:
    left = job.progress.total - job.progress.step
    if job.state is not JobState.RUNNING or left < 0 or not job.progress.total or steps_per_s <= 0:
        return None
    return round(left / steps_per_s)


def finite(value: float) -> float | None:
    """The value, or None for what JSON cannot say."""
    return value if math.isfinite(value) else None
