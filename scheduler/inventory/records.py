"""The tables of the inventory, the indexes over them, and what of them changed since it was last saved."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

from scheduler.domain.changes import Changes, LogRow
from scheduler.domain.cluster import Lease, LeaseKey, Node, ReclaimRecord, Site
from scheduler.domain.jobs import Job, Worker
from scheduler.domain.ledger import Books
from scheduler.domain.plan import Assign, Withheld
from scheduler.inventory.effects import Effect
from scheduler.inventory.past import SitePast
from scheduler.inventory.shares import Shares
from scheduler.lifecycle import move
from scheduler.lifecycle.moves import AnyState, name_of

STORY_ROWS = 12
"""Log lines that an entity's story keeps."""

RECLAIMS_KEPT = 1000
"""Hand-backs that stay in memory; the store keeps all."""


@dataclass(slots=True)
class Dirty:
    """Keys of rows that are not saved yet."""

    nodes: set[str] = field(default_factory=set)
    leases: set[LeaseKey] = field(default_factory=set)
    jobs: set[str] = field(default_factory=set)
    workers: set[str] = field(default_factory=set)
    requests: set[str] = field(default_factory=set)
    reclaims: list[ReclaimRecord] = field(default_factory=list)
    log: list[LogRow] = field(default_factory=list)
    last_epoch: bool = False


class Records:
    """Plain tables. Handlers change them through `put`, `move` and `log`, and nothing else does.

    Invariants: `live_lease` maps a node to its one live lease; `on_lease` maps a live lease to its devices' live
    workers; `of_job` maps a job to its live workers.
    """

    def __init__(self, lease_ttl_s: float, book_every_s: float) -> None:
        self.lease_ttl_s = lease_ttl_s
        self.book_every_s = book_every_s
        self.now_s = 0.0
        self.version = 0
        self.last_epoch = 0
        self.last_sequence = 0
        self.cause_id = ""
        self.nodes: dict[str, Node] = {}
        self.leases: dict[LeaseKey, Lease] = {}
        self.jobs: dict[str, Job] = {}
        self.workers: dict[str, Worker] = {}
        self.sites: dict[str, Site] = {}
        self.requests: dict[str, str] = {}
        self.reclaims: deque[ReclaimRecord] = deque(maxlen=RECLAIMS_KEPT)
        self.books = Books()
        self.effects: list[Effect] = []
        self.live_lease: dict[str, Lease] = {}
        self.live_jobs: set[str] = set()
        self.on_lease: dict[LeaseKey, dict[str, str]] = {}
        self.of_job: dict[str, set[str]] = {}
        # What need not survive a crash: it is learnt again, or only delays something.
        self.cohorts: dict[str, tuple[str, float]] = {}  # site -> newest cohort, its first lease's start
        self.suspect_since: dict[str, float | None] = {}
        self.not_before: dict[str, float] = {}  # node -> no new lease before
        self.rejoin_delay: dict[str, float] = {}
        self.withheld: dict[str, Withheld] = {}
        self.refusals: dict[str, int] = {}
        self.lost_workers: dict[str, tuple[str, ...]] = {}  # job -> not yet told to its site
        self.last_step: dict[str, Assign] = {}
        self.steps_lost: dict[str, int] = {}  # job -> since its last rescale
        self.expert_loads: dict[str, tuple[float, ...]] = {}  # job -> tokens of late of each of its experts
        self.energy_j: dict[LeaseKey, float] = {}
        self.pasts: dict[str, SitePast] = {}  # site -> how its nodes come and go; learnt again from ended leases
        self.shares = Shares()
        self.next_look_s = 0.0  # when waiting jobs are weighed anew though nothing else has changed
        self.stories: dict[str, deque[tuple[float, tuple[str, ...], str]]] = {}
        self.dirty = Dirty()
        self._live_nodes: list[str] | None = None  # those with a live lease, sorted; None: to be sorted anew
        self._live_leases: tuple[Lease, ...] | None = None  # in their order; None: to be gathered anew

    # --- writing -----------------------------------------------------------------------------------------------

    def put(self, entity: Node | Lease | Job | Worker, *, quiet: bool = False) -> None:
        """Keep the newest form of an entity, and save it with the next batch. Quiet: no plan depends on the change."""
        match entity:
            case Node():
                self.nodes[entity.id] = entity
                self.dirty.nodes.add(entity.id)
            case Lease():
                self._put_lease(entity)
            case Job():
                self._put_job(entity)
            case Worker():
                self._put_worker(entity)
        self.version += not quiet

    def move(self, entity: Any, to: AnyState, **fields: Any) -> Any:
        """Change an entity's state through its table and keep it. Returns the new form."""
        name = name_of(entity)
        moved = move(entity, to, lambda: self.story(name), **fields)
        self.put(moved)
        self.remember(name, entity.state, " -> ", to)
        return moved

    def log(self, kind: str, message: str, *, job: str = "", node: str = "", site: str = "", **data: Any) -> None:
        """Add a row to the event log."""
        self.last_sequence += 1
        text = json.dumps(data, separators=(",", ":"), sort_keys=True) if data else "{}"
        row = LogRow(self.last_sequence, self.now_s, kind, message, self.cause_id, job, node, site, text)
        self.dirty.log.append(row)
        if job:
            self.remember(f"job {job}", kind, ": ", message)
        if node:
            self.remember(f"node {node}", kind, ": ", message)

    def remember(self, entity: str, *words: str) -> None:
        """Add a line to an entity's story. It is put together when somebody asks for it."""
        story = self.stories.get(entity)
        if story is None:
            story = self.stories[entity] = deque(maxlen=STORY_ROWS)
        story.append((self.now_s, words, self.cause_id))

    def story(self, entity: str) -> tuple[str, ...]:
        """The last that happened to an entity, oldest first."""
        return tuple(f"{at_s:.3f} {''.join(words)} [{cause}]" for at_s, words, cause in self.stories.get(entity, ()))

    def next_epoch(self) -> int:
        """A number that no lease has had."""
        self.last_epoch += 1
        self.dirty.last_epoch = True
        return self.last_epoch

    def add_request(self, request_id: str, job: str) -> None:
        """Remember which job a submit made."""
        self.requests[request_id] = job
        self.dirty.requests.add(request_id)

    def add_reclaim(self, record: ReclaimRecord) -> None:
        """Keep one hand-back."""
        self.reclaims.append(record)
        self.dirty.reclaims.append(record)

    def _put_lease(self, lease: Lease) -> None:
        key, before = lease.key, self.live_lease.get(lease.key.node)
        self.leases[key] = lease
        self.dirty.leases.add(key)
        if lease.is_live:
            self.live_lease[key.node] = lease
            self._live_leases = None
            if before is None or before.key != key:
                self._live_nodes = None
                self.on_lease.setdefault(key, {})
        elif before is not None and before.key == key:
            del self.live_lease[key.node]
            self.on_lease.pop(key, None)
            self._live_leases = self._live_nodes = None

    def _put_job(self, job: Job) -> None:
        self.jobs[job.id] = job
        self.dirty.jobs.add(job.id)
        if job.state.is_live:
            self.live_jobs.add(job.id)
        else:
            self.live_jobs.discard(job.id)

    def _put_worker(self, worker: Worker) -> None:
        self.workers[worker.id] = worker
        self.dirty.workers.add(worker.id)
        held = self.on_lease.get(worker.lease, {})
        for device in worker.devices:
            if worker.is_live:
                held[device] = worker.id
            elif held.get(device) == worker.id:
                del held[device]
        mates = self.of_job.setdefault(worker.job, set())
        if worker.is_live:
            mates.add(worker.id)
        else:
            mates.discard(worker.id)

    # --- reading -----------------------------------------------------------------------------------------------

    def past_of(self, site: str) -> SitePast:
        """How a site's nodes come and go."""
        past = self.pasts.get(site)
        if past is None:
            past = self.pasts[site] = SitePast()
        return past

    def live_lease_of(self, node: str) -> Lease | None:
        """The node's live lease, if it has one."""
        return self.live_lease.get(node)

    def live_leases(self) -> tuple[Lease, ...]:
        """Leases that have not ended, sorted by key: by node, as a node has one."""
        if self._live_nodes is None:
            self._live_nodes = sorted(self.live_lease)
        if self._live_leases is None:
            self._live_leases = tuple(map(self.live_lease.__getitem__, self._live_nodes))
        return self._live_leases

    def live_workers(self) -> Iterator[Worker]:
        """Workers that still hold their devices, sorted by id: all but those that ended and are not saved yet."""
        ended = {worker for worker in self.dirty.workers if not self.workers[worker].is_live}
        return map(self.workers.__getitem__, sorted(self.workers.keys() - ended if ended else self.workers))

    def workers_on(self, key: LeaseKey) -> list[Worker]:
        """Live workers on a lease, sorted by id."""
        return [self.workers[w] for w in sorted(set(self.on_lease.get(key, {}).values()))]

    def workers_of(self, job: str) -> list[Worker]:
        """Live workers of a job, sorted by id."""
        return [self.workers[w] for w in sorted(self.of_job.get(job, ()))]

    # --- saving ------------------------------------------------------------------------------------------------

    def take_changes(self) -> Changes:
        """Everything that changed since the last call. What has ended is dropped from memory once it is taken."""
        dirty, self.dirty = self.dirty, Dirty()
        changes = Changes(
            nodes=tuple(self.nodes[n] for n in sorted(dirty.nodes)),
            leases=tuple(self.leases[k] for k in sorted(dirty.leases, key=_by_node)),
            jobs=tuple(self.jobs[j] for j in sorted(dirty.jobs)),
            workers=tuple(self.workers[w] for w in sorted(dirty.workers)),
            requests=tuple((r, self.requests[r]) for r in sorted(dirty.requests)),
            accounts=self.books.take_changed(),
            reclaims=tuple(dirty.reclaims),
            log=tuple(dirty.log),
            last_epoch=self.last_epoch if dirty.last_epoch else None,
        )
        self._forget_workers(changes.workers)
        return changes

    def untake(self, changes: Changes) -> None:
        """These changes could not be saved: hand them out again with the next ones, in order."""
        for worker in changes.workers:
            self.workers.setdefault(worker.id, worker)
        dirty = self.dirty
        dirty.nodes.update(n.id for n in changes.nodes)
        dirty.leases.update(lease.key for lease in changes.leases)
        dirty.jobs.update(j.id for j in changes.jobs)
        dirty.workers.update(w.id for w in changes.workers)
        dirty.requests.update(r for r, _ in changes.requests)
        dirty.reclaims[:0] = changes.reclaims
        dirty.log[:0] = changes.log
        dirty.last_epoch = dirty.last_epoch or changes.last_epoch is not None
        self.books.untake(changes.accounts)

    def _forget_workers(self, workers: Iterable[Worker]) -> None:
        for worker in workers:
            if not worker.is_live:
                del self.workers[worker.id]
                self.stories.pop(name_of(worker), None)

    def forget_lease(self, key: LeaseKey) -> None:
        """Drop an ended lease from memory."""
        del self.leases[key]
        self.energy_j.pop(key, None)
        self.stories.pop(f"lease {key}", None)

    def set_site(self, site: Site, **fields: Any) -> Site:
        """Keep the newest form of a site; sites are not saved, they connect again."""
        self.sites[site.id] = replace(site, **fields)
        self.version += 1
        return self.sites[site.id]


_by_node = attrgetter("node", "epoch")
"""The order of lease keys, as tuples, which sort much faster."""
