"""A whole scheduler on a manual clock, with the twin for agents and sites: what core tests are made of."""

from __future__ import annotations

from scheduler.clock import ManualClock
from scheduler.control_loop import ControlLoop
from scheduler.domain import events
from scheduler.domain.changes import Changes, LogRow, Saved
from scheduler.domain.cluster import Device
from scheduler.domain.jobs import Job, JobKind, ModelShape, RescaleCosts, Role, RoleNeed
from scheduler.inventory import Inventory
from scheduler.simulation.executor import TwinExecutor
from scheduler.simulation.twin_jobs import Work

GIB = 2**30


def devices(count: int, kind: str = "cpu", memory_bytes: int = GIB) -> tuple[Device, ...]:
    return tuple(Device(f"{kind}:{i}", kind, f"a {kind}", memory_bytes, 1) for i in range(count))


def submit_event(job: str, at_s: float = 0.0, **changes: object) -> events.JobSubmitted:
    fields: dict[str, object] = {
        "name": job,
        "kind": JobKind.TRAIN,
        "user": "ada",
        "request_id": f"r-{job}",
        "spec_json": "{}",
        "needs": (RoleNeed(Role.TRAINER, 1, 4),),
        "weight": 1.0,
        "device_kinds": (),
        "shape": None,
        "copies": 1,
    }
    return events.JobSubmitted(job=job, at_s=at_s, **{**fields, **changes})  # type: ignore[arg-type]


SHAPE = ModelShape(layers=2, experts=4, expert_bytes=1000, dense_bytes=1000)
SERVE = {
    "kind": JobKind.SERVE,
    "needs": (RoleNeed(Role.ENGINE, 1, 1), RoleNeed(Role.SHARD, 2, 3)),
    "shape": SHAPE,
    "copies": 2,
}


class DurableStore:
    """A store in memory that survives a scheduler's death, and can be full."""

    def __init__(self) -> None:
        self.nodes, self.leases, self.jobs, self.workers = {}, {}, {}, {}  # type: ignore[var-annotated]
        self.requests: dict[str, str] = {}
        self.accounts = {}  # type: ignore[var-annotated]
        self.rows: list[LogRow] = []
        self.last_epoch = 0
        self.full = False
        self.saves = 0

    def save(self, changes: Changes) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        self.saves += 1
        self.nodes |= {n.id: n for n in changes.nodes}
        self.leases |= {lease.key: lease for lease in changes.leases}
        self.jobs |= {j.id: j for j in changes.jobs}
        self.workers |= {w.id: w for w in changes.workers}
        self.requests |= dict(changes.requests)
        self.accounts |= {a.key: a for a in changes.accounts}
        self.rows += changes.log
        self.last_epoch = changes.last_epoch if changes.last_epoch is not None else self.last_epoch

    def load(self) -> Saved:
        return Saved(
            nodes=tuple(self.nodes.values()),
            leases=tuple(lease for lease in self.leases.values() if lease.is_live),
            jobs=tuple(self.jobs.values()),
            workers=tuple(w for w in self.workers.values() if w.is_live),
            requests=tuple(self.requests.items()),
            accounts=tuple(self.accounts.values()),
            last_epoch=self.last_epoch,
            last_sequence=self.rows[-1].sequence if self.rows else 0,
            ended=tuple(lease for lease in self.leases.values() if not lease.is_live),
        )

    def log_after(self, sequence: int, limit: int, job: str = "") -> tuple[LogRow, ...]:
        return tuple(r for r in self.rows if r.sequence > sequence and job in ("", r.job))[:limit]

    def log_tail(self, limit: int, job: str = "") -> tuple[LogRow, ...]:
        return tuple(r for r in self.rows if job in ("", r.job))[-limit:]


class World:
    """The scheduler and everything around it. Time stands unless `run` moves it."""

    def __init__(self, warmup_s: float = 1.0, costs: RescaleCosts | None = None, work: Work | None = None) -> None:
        self.clock = ManualClock()
        self.store = DurableStore()
        self.twin = TwinExecutor(self.clock, self._post, warmup_s, costs, lambda job: work or Work())
        self.inventory = Inventory()
        self.loop = ControlLoop(self.inventory, self.store, self.twin, self.clock)
        self.submits = 0

    def _post(self, event: events.Event) -> None:
        self.loop.post(event)

    def crash(self) -> None:
        """The scheduler dies and starts again from its store; agents and sites connect again."""
        self.inventory = Inventory.restore(self.store.load())
        self.loop = ControlLoop(self.inventory, self.store, self.twin, self.clock)
        self.twin.reconnect()

    def take_in(self) -> None:
        """Apply what is in the inbox, without planning."""
        self.loop.take_in(self.clock.now_s())

    def turn(self) -> None:
        self.loop.turn(self.clock.now_s())

    def run(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass, with a tick every `step_s` and a turn whenever something happens."""
        end_s = self.clock.now_s() + seconds
        while True:
            next_s = self.twin.next_s()
            at_s = min(end_s, self.clock.now_s() + step_s, end_s if next_s is None else max(next_s, self.clock.now_s()))
            self.clock.advance_to(at_s)
            self.twin.play(at_s)
            self.loop.post(events.Tick(at_s=at_s, cause_id="tick"))
            self.turn()
            if at_s >= end_s and (self.twin.next_s() or end_s + 1) > end_s:
                return

    def add_site(self, site: str = "s") -> None:
        self.twin.open_site(site)

    def add_nodes(self, count: int, site: str = "s", each: int = 1, kind: str = "cpu", prefix: str = "n") -> list[str]:
        """New nodes, lent."""
        known = len(self.inventory.nodes)
        names = [f"{prefix}{known + i:02}" for i in range(count)]
        for name in names:
            self.twin.add_node(name, site, devices(each, kind))
            self.twin.owner_lends(name)
        return names

    def submit(self, **changes: object) -> str:
        self.submits += 1
        job = self.loop.new_job_id()
        self.loop.post(submit_event(job, self.clock.now_s(), request_id=f"r{self.submits}", **changes))
        return job

    def job(self, job: str) -> Job:
        return self.inventory.jobs[job]
