"""What a snapshot holds, read again only where it is not what the last one held.

Snapshots of one inventory share every lease, job and worker that has not changed: whether something is the very same
object is known at once. So a machine of a hundred thousand nodes, of which a few have come or gone, is looked at in
some milliseconds, and what is seen is the same as if it had been looked at for the first time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState
from scheduler.domain.jobs import Assignment, Job, JobState, Worker, WorkerSlot, WorkerState
from scheduler.domain.plan import Snapshot
from scheduler.planning.view import Place, Pool, PoolKey, Spot, Standing, Terms, View, place_of
from scheduler.planning.worth import fairness_of

SHARED = ("free", "emptying", "starting", "held")
"""Uses of devices that can be shared out among jobs."""

Entity = TypeVar("Entity", Lease, Job, Worker)


class _Seen(Generic[Entity]):
    """The objects of the last snapshot. They are kept, so that no other object can take the place of one in memory."""

    def __init__(self) -> None:
        self._by_id: dict[int, Entity] = {}

    def news(self, entities: Sequence[Entity]) -> tuple[list[Entity], list[Entity]]:
        """What is there now and was not, and what was there and is not; a replaced entity is in both."""
        before = self._by_id
        self._by_id = now = dict(zip(map(id, entities), entities, strict=True))
        come, gone = now.keys() - before.keys(), before.keys() - now.keys()
        return [now[number] for number in come], [before[number] for number in gone]


@dataclass(slots=True)
class _Count:
    """A pool as far as it is counted."""

    free: dict[Place, Spot] = field(default_factory=dict)
    starting: dict[Place, Spot] = field(default_factory=dict)
    memory_bytes: Counter[int] = field(default_factory=Counter)
    of_use: Counter[str] = field(default_factory=Counter)

    def change(self, use: str, device: Device, by: int) -> None:
        self.of_use[use] += by
        if use in SHARED:
            self.memory_bytes[device.memory_bytes] += by

    def pool(self, key: PoolKey) -> Pool:
        of_use = self.of_use
        return Pool(
            key,
            self.free.copy(),
            emptying=of_use["emptying"],
            starting=self.starting.copy(),
            held=of_use["held"],
            memory_bytes=tuple(sorted((size, count) for size, count in self.memory_bytes.items() if count)),
            draining=of_use["draining"],
            joining=of_use["joining"],
            suspect=of_use["suspect"],
        )


class Survey:
    """See the module. Invariant: everything but `_seen` is a function of the last snapshot alone."""

    def __init__(self) -> None:
        self._start(())

    def _start(self, sites: tuple[str, ...]) -> None:
        self._sites = sites
        self._seen_leases, self._seen_jobs, self._seen_workers = _Seen[Lease](), _Seen[Job](), _Seen[Worker]()
        self._leases: dict[LeaseKey, Lease] = {}
        self._jobs: dict[str, Job] = {}
        self._workers: dict[str, Worker] = {}
        self._on_lease: dict[LeaseKey, dict[str, Worker]] = {}  # by id
        self._assigned: dict[LeaseKey, set[str]] = {}  # jobs that have been assigned workers there
        self._standings: dict[str, Standing] = {}
        self._stayers: set[str] = set()
        self._suspect: set[LeaseKey] = set()
        self._uses: dict[LeaseKey, tuple[tuple[PoolKey, str, Device], ...]] = {}
        self._draining: set[LeaseKey] = set()
        self._counts: dict[PoolKey, _Count] = {}
        self._pools: dict[PoolKey, Pool] = {}
        self._touched: set[PoolKey] = set()  # pools to be counted anew

    def look(self, snapshot: Snapshot) -> View:
        """The snapshot, as the planner looks at it."""
        sites = tuple(sorted(snapshot.connected_sites))
        if sites != self._sites:
            self._start(sites)
        leases = self._take_leases(snapshot.leases)
        moved = {job for key in leases for job in self._assigned.get(key, ())}
        for worker in self._take_workers(snapshot.workers):
            leases.add(worker.lease)
            moved.add(worker.job)
        for job in self._take_jobs(snapshot.jobs) | moved:
            leases.update(self._stand(job, job in moved))
        suspect = set(snapshot.suspect)
        leases |= suspect ^ self._suspect
        self._suspect = suspect
        self._count(leases)
        standings = tuple(sorted(self._standings.values(), key=lambda s: s.order))
        pools = {key: self._pools[key] for key in sorted(self._pools)}
        return View(self._leases.copy(), pools, standings, sites, _terms(snapshot, standings), self._drained())

    def _drained(self) -> tuple[Lease, ...]:
        empty = (self._leases[key] for key in self._draining if not self._on_lease.get(key))
        return tuple(sorted((lease for lease in empty if lease.released_s is None), key=lambda lease: lease.key))

    # --- what is new -------------------------------------------------------------------------------------------

    def _take_leases(self, leases: Sequence[Lease]) -> set[LeaseKey]:
        """Those whose devices count as something else, or might."""
        come, gone = self._seen_leases.news(leases)
        before = {lease.key: lease for lease in gone}
        changed = set()
        for lease in come:
            old = before.pop(lease.key, None)
            self._leases[lease.key] = lease
            if old and (old.state, old.site, old.devices) == (lease.state, lease.site, lease.devices):
                self._rename(old, lease)
            else:
                changed.add(lease.key)
        for key in before:
            del self._leases[key]
        return changed | before.keys()

    def _take_workers(self, workers: Sequence[Worker]) -> list[Worker]:
        """Those that came, went or changed."""
        come, gone = self._seen_workers.news(workers)
        for worker in gone:
            del self._workers[worker.id]
            del self._on_lease[worker.lease][worker.id]
        for worker in come:
            self._workers[worker.id] = worker
            self._on_lease.setdefault(worker.lease, {})[worker.id] = worker
        return [*come, *gone]

    def _take_jobs(self, jobs: Sequence[Job]) -> set[str]:
        come, gone = self._seen_jobs.news(jobs)
        for job in gone:
            del self._jobs[job.id]
        self._jobs.update((job.id, job) for job in come)
        return {job.id for job in (*come, *gone)}

    # --- jobs --------------------------------------------------------------------------------------------------

    def _stand(self, name: str, has_moved: bool) -> Iterable[LeaseKey]:
        """How a job stands now; returns the leases whose devices count as something else for it."""
        job, old = self._jobs.get(name), self._standings.pop(name, None)
        if job is None or not job.state.is_live or job.state is JobState.ENDING:
            self._note_assigned(name, old, None)
            return self._note_stayers(old, None)
        planned = replace(job, needs=job.useful_needs) if job.wanted else job
        if old and not has_moved and old.job.assignment is job.assignment:
            self._standings[name] = replace(old, job=planned)
            return ()
        new = self._standings[name] = stand(planned, self._leases, self._workers, self._sites)
        self._note_assigned(name, old, new)
        return self._note_stayers(old, new)

    def _note_assigned(self, name: str, old: Standing | None, new: Standing | None) -> None:
        before, after = _assignment_of(old), _assignment_of(new)
        if before is after:
            return
        for slot in before.workers if before else ():
            self._assigned.get(slot.lease, set()).discard(name)
        for slot in after.workers if after else ():
            self._assigned.setdefault(slot.lease, set()).add(name)

    def _note_stayers(self, old: Standing | None, new: Standing | None) -> set[LeaseKey]:
        before = {slot.worker: slot.lease for slot in old.staying} if old else {}
        after = {slot.worker: slot.lease for slot in new.staying} if new else {}
        self._stayers.difference_update(before)
        self._stayers.update(after)
        return {(before.get(worker) or after[worker]) for worker in before.keys() ^ after.keys()}

    # --- devices -----------------------------------------------------------------------------------------------

    def _rename(self, old: Lease, lease: Lease) -> None:
        """The lease is another object, with the same devices in the same use."""
        for key, use, device in self._uses[lease.key]:
            if use in ("free", "starting"):
                spot, count = Spot(lease, device), self._counts[key]
                (count.free if use == "free" else count.starting)[place_of(spot)] = spot
                self._touched.add(key)

    def _count(self, leases: Iterable[LeaseKey]) -> None:
        """Count the devices of some leases anew, and the pools that they are in."""
        for key in leases:
            self._count_lease(key)
        for pool in self._touched:
            count = self._counts[pool]
            if any(count.of_use.values()):
                self._pools[pool] = count.pool(pool)
            else:
                del self._counts[pool], self._pools[pool]
        self._touched.clear()

    def _count_lease(self, key: LeaseKey) -> None:
        lease = self._leases.get(key)
        for pool, use, device in self._uses.pop(key, ()):
            self._counts[pool].change(use, device, -1)
            for spots in (self._counts[pool].free, self._counts[pool].starting):
                spots.pop((key.node, key.epoch, device.id), None)
            self._touched.add(pool)
        if lease is None:
            self._draining.discard(key)
            if not self._on_lease.get(key):
                self._on_lease.pop(key, None)
            return
        if lease.state is LeaseState.DRAINING:
            self._draining.add(key)
        uses = self._uses[key] = tuple(self._uses_of(lease))
        for pool, use, device in uses:
            count = self._counts.setdefault(pool, _Count())
            count.change(use, device, +1)
            if use in ("free", "starting"):
                spots = count.free if use == "free" else count.starting
                spots[key.node, key.epoch, device.id] = Spot(lease, device)
            self._touched.add(pool)

    def _uses_of(self, lease: Lease) -> Iterable[tuple[PoolKey, str, Device]]:
        workers = self._on_lease.get(lease.key)
        holders = {d: workers[name] for name in sorted(workers) for d in workers[name].devices} if workers else {}
        for device in lease.devices:
            yield (lease.site, device.kind), self._use(lease, holders.get(device.id)), device

    def _use(self, lease: Lease, holder: Worker | None) -> str:
        if lease.state is LeaseState.DRAINING:
            return "draining"
        if holder is not None and holder.id in self._stayers:
            return "starting" if holder.state is WorkerState.STARTING else "held"
        if lease.key in self._suspect:
            return "suspect"
        if lease.state is not LeaseState.READY:
            return "joining"
        return "free" if holder is None else "emptying"


def look(snapshot: Snapshot) -> View:
    """Read a snapshot for the first time."""
    return Survey().look(snapshot)


def _assignment_of(standing: Standing | None) -> Assignment | None:
    return standing.job.assignment if standing else None


def stand(
    job: Job, leases: Mapping[LeaseKey, Lease], workers: Mapping[str, Worker], sites: Collection[str]
) -> Standing:
    """What became of the workers that a job was assigned."""
    staying: list[WorkerSlot] = []
    leaving: list[WorkerSlot] = []
    lost: list[WorkerSlot] = []
    for slot in job.assignment.workers if job.assignment else ():
        lease, worker = leases.get(slot.lease), workers.get(slot.worker)
        if lease is None or worker is None or worker.state is WorkerState.LEAVING:
            lost.append(slot)
        elif lease.state is LeaseState.DRAINING and lease.site in sites:
            leaving.append(slot)
        else:
            staying.append(slot)
    pool = next((_pool_of(slot, leases[slot.lease]) for slot in (*staying, *leaving)), None)
    return Standing(job, tuple(staying), tuple(leaving), tuple(lost), pool)


def _pool_of(slot: WorkerSlot, lease: Lease) -> PoolKey:
    return lease.site, next(device.kind for device in lease.devices if device.id == slot.devices[0])


def _terms(snapshot: Snapshot, standings: Iterable[Standing]) -> Terms:
    usages = {usage.user: usage.device_s for usage in snapshot.usages}
    users = {user: usages.get(user, 0.0) for user in sorted({standing.job.user for standing in standings})}
    outlooks = {outlook.site: outlook for outlook in snapshot.outlooks}
    return Terms(snapshot.now_s, outlooks, fairness_of(users), dict(snapshot.spent), dict(snapshot.expert_loads))
