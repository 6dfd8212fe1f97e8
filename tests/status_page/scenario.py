"""A busy afternoon at three sites, as plain domain values; seeded, so that every picture of it is the same."""

# ruff: noqa: E501  (its tables read better as tables)

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from scheduler.domain.changes import LogRow
from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord, Site
from scheduler.domain.jobs import (
    Assignment,
    Job,
    JobKind,
    JobState,
    Progress,
    RescaleRecord,
    Role,
    RoleNeed,
    Worker,
    WorkerSlot,
    WorkerState,
)
from scheduler.domain.ledger import Account, AccountKey
from scheduler.domain.reasons import Reason
from scheduler.status_page.history import Sample


@dataclass
class FakeInventory:
    """What the page reads of an inventory, to be changed by the test."""

    nodes: dict[str, Node] = field(default_factory=dict)
    leases: dict[LeaseKey, Lease] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    accounts: dict[AccountKey, Account] = field(default_factory=dict)
    reclaims: Sequence[ReclaimRecord] = ()
    version: int = 0


class FakeLoop:
    """A control loop whose state is set by hand."""

    def __init__(self, inventory: FakeInventory, unplaced: Mapping[str, Reason] | None = None) -> None:
        self.inventory = inventory
        self.unplaced = dict(unplaced or {})
        self._rows: asyncio.Queue[LogRow] = asyncio.Queue()

    def say(self, row: LogRow) -> None:
        """Let the page hear of an event."""
        self._rows.put_nowait(row)

    def subscribe(self) -> FakeSubscription:
        """New log rows, for ever."""
        return FakeSubscription(self._rows)


class FakeSubscription:
    """Rows from a queue."""

    def __init__(self, rows: asyncio.Queue[LogRow]) -> None:
        self._rows = rows

    def __aiter__(self) -> FakeSubscription:
        return self

    async def __anext__(self) -> LogRow:
        return await self._rows.get()

    def close(self) -> None:
        """Nothing to give back."""


def devices(count: int, model: str = "H100 SXM", kind: str = "cuda") -> tuple[Device, ...]:
    """Equal devices of one node."""
    return tuple(Device(f"{kind}{i}", kind, model, 80 << 30, 0) for i in range(count))


SITES = (("delta", "gpu", 64, 4, "A100 SXM"), ("ridge", "r", 96, 4, "H100 SXM"), ("yunhai", "cn", 40, 8, "Ascend 910B"))
"""(site, node prefix, nodes, devices a node, model)."""


class Afternoon:
    """Builds the scenario as of `now_s`."""

    def __init__(self, now_s: float, seed: int = 7) -> None:
        self.now_s = now_s
        self.random = random.Random(seed)
        self.inventory = FakeInventory()
        self.free: dict[str, list[tuple[LeaseKey, str]]] = {}
        self.unplaced: dict[str, Reason] = {}

    def build(self) -> FakeLoop:
        """The loop with everything in it."""
        for site, prefix, count, per_node, model in SITES:
            self.inventory.sites[site] = Site(site, connected=site != "yunhai", ray_version="2.60.0")
            self.free[site] = []
            for i in range(count):
                self._node(site, f"{prefix}{i + 1:03d}", i, devices(per_node, model))
        self.inventory.sites["yunhai"] = Site("yunhai", connected=True, ray_version="2.60.0")
        self._jobs()
        self._books()
        loop = FakeLoop(self.inventory, self.unplaced)
        for row in self._events():
            loop.say(row)
        return loop

    # --- nodes -------------------------------------------------------------------------------------------------

    def _node(self, site: str, name: str, i: int, of: tuple[Device, ...]) -> None:
        state = self._state(site, i)
        node = Node(
            name, site, state, of, source="pilot", reason="no job of its owner fits", grace_s=30.0,
            spare_devices=tuple(d.id for d in of), last_report_s=self.now_s - 2, agent_connected=True,
        )  # fmt: skip
        self.inventory.nodes[name] = node
        if state in (NodeState.LENT, NodeState.DRAINING, NodeState.SUSPECT):
            self._lease(node, i)

    def _state(self, site: str, i: int) -> NodeState:
        if site == "ridge" and 40 <= i < 46:
            return NodeState.DRAINING
        if (site, i) in (("delta", 17), ("yunhai", 31)):
            return NodeState.SUSPECT if site == "delta" else NodeState.LOST
        busy = {"delta": 12 <= i < 34 and i not in (15, 16), "ridge": i >= 74 or 20 <= i < 31, "yunhai": i < 9}
        return NodeState.BUSY if busy[site] else NodeState.LENT

    def _lease(self, node: Node, i: int) -> None:
        state = LeaseState.DRAINING if node.state is NodeState.DRAINING else LeaseState.READY
        if node.site == "yunhai" and i >= 37:
            state = LeaseState.JOINING
        started_s = self.now_s - (400 if i % 48 > 30 else 2900) - 7 * (i // 24)
        lease = Lease(
            LeaseKey(node.id, 100 + i), node.site, state, node.devices, "", started_s,
            cohort=f"{node.site}@{started_s:.3f}", grace_s=30.0,
            deadline_s=self.now_s + 21 if state is LeaseState.DRAINING else None,
            drain_cause="the owner's job 48211 starts" if state is LeaseState.DRAINING else "",
        )  # fmt: skip
        self.inventory.leases[lease.key] = lease
        if state is LeaseState.READY and node.state is NodeState.LENT:
            self.free[node.site] += [(lease.key, device.id) for device in node.devices]

    # --- jobs --------------------------------------------------------------------------------------------------

    def _jobs(self) -> None:
        train, serve, task = JobKind.TRAIN, JobKind.SERVE, JobKind.TASK
        reasons = Reason(
            "too_few_devices",
            "It needs 64 devices at one site; the most that any site lends now is 23 free ones at ridge.",
            "It starts by itself when more nodes are lent. To start sooner, lower width.min to 16.",
        )
        self._add("yuan-m32-pretrain", train, "ridge", 64, 224, 220, Progress(41_870, 120_000, 2.143, 1.31e6, "tokens/s"),
                  curve=((64, 402.0), (96, 590.0), (128, 771.0), (220, 1251.0)))  # fmt: skip
        self._add(
            "qwen3-moe-sft-zh", train, "delta", 16, 128, 128, Progress(3_214, 4_000, 1.267, 312_400.0, "tokens/s")
        )
        self._add("yuan-m32-chat", serve, "yunhai", 12, 120, 100, Progress(1_204_118, 0, 0.0, 8_460.0, "tokens/s"),
                  endpoint="http://login1.yunhai:8210/v1")  # fmt: skip
        self._add("docking-screen-7", task, "yunhai", 1, 128, 112, Progress(18_403, 50_000, 0.0, 61.2, "items/s"))
        self._add("router-ablation", train, "delta", 8, 64, 40, Progress(122, 2_000, 4.81, 0.0, ""), JobState.STARTING)
        self._add("mixtral-eval", train, "", 64, 256, 0, Progress(880, 5_000, 1.911, 0.0, "tokens/s"), JobState.PARKED)
        self._add("bge-embed-corpus", task, "", 96, 96, 0, Progress(), JobState.QUEUED)
        self._add("tokenizer-sweep", task, "delta", 1, 16, 0, Progress(240, 240, 0.0, 0.0, ""), JobState.DONE)
        self._add("lazarus-repro", train, "ridge", 8, 32, 0, Progress(410, 3_000, 3.02, 0.0, ""), JobState.FAILED,
                  message="train.data: /data/pile/part-0113.txt is not UTF-8 at byte 88,120: convert it or leave it out")  # fmt: skip
        by_name = {job.name: job.id for job in self.inventory.jobs.values()}
        self.unplaced = {
            by_name["mixtral-eval"]: reasons,
            by_name["bge-embed-corpus"]: Reason(
                "no_such_kind",
                "It asks for 96 devices of kind rocm; no site that is connected has any.",
                "Remove rocm from device_kinds, or lend nodes that have such devices.",
            ),
            by_name["yuan-m32-pretrain"]: Reason(
                "partly_placed",
                "It runs at 220 of 224 workers: more nodes at ridge are being given back.",
                "Nothing needs to be done: it grows when nodes are lent again.",
            ),
        }

    def _add(
        self, name: str, kind: JobKind, site: str, least: int, most: int, width: int, progress: Progress,
        state: JobState = JobState.RUNNING, message: str = "", endpoint: str = "",
        curve: tuple[tuple[int, float], ...] = (),
    ) -> None:  # fmt: skip
        number = len(self.inventory.jobs) + 1
        job_id = f"j-{number:04d}"
        workers = self._workers(job_id, kind, site, width, state) if width else ()
        submitted_s = self.now_s - 9_000 + 700 * number
        ended = not state.is_live
        needs = (
            (RoleNeed(Role.ENGINE, 4, 20), RoleNeed(Role.SHARD, least - 4, most - 20))
            if kind is JobKind.SERVE
            else (RoleNeed(Role.RUNNER if kind is JobKind.TASK else Role.TRAINER, least, most),)
        )
        self.inventory.jobs[job_id] = Job(
            job_id, name, kind, "lin" if "zh" in name or "yuan" in name else "amira", state, submitted_s, "{}", needs,
            assignment=Assignment(job_id, 4, workers) if workers else None, reached_revision=4,
            started_s=submitted_s + 21 if state is not JobState.QUEUED else None,
            ended_s=self.now_s - 600 - 31 * number if ended else None, progress=progress, message=message,
            endpoint=endpoint, curve=curve, rescales=self._rescales(width) if width else (), site=site,
            losses_by_reclaim=6 if width > 100 else 0, steps_lost=4 if width > 150 else 0,
        )  # fmt: skip

    def _workers(self, job: str, kind: JobKind, site: str, width: int, state: JobState) -> tuple[WorkerSlot, ...]:
        slots = []
        role = {JobKind.TRAIN: Role.TRAINER, JobKind.TASK: Role.RUNNER, JobKind.SERVE: Role.SHARD}[kind]
        for i in range(width):
            lease, device = self.free[site].pop(0)
            of = Role.ENGINE if kind is JobKind.SERVE and i < 12 else role
            slots.append(WorkerSlot(f"{job}-w{i}", of, lease, (device,)))
            moving = state is JobState.STARTING or (job == "j-0002" and i >= 124)
            now = WorkerState.STARTING if moving else WorkerState.RUNNING
            self.inventory.workers[f"{job}-w{i}"] = Worker(f"{job}-w{i}", job, of, lease, (device,), now, self.now_s)
        return tuple(slots)

    def _rescales(self, width: int) -> tuple[RescaleRecord, ...]:
        return (
            RescaleRecord(self.now_s - 5_100, "start", width - 40, 2.1),
            RescaleRecord(self.now_s - 3_900, "grow", width - 8, 0.42),
            RescaleRecord(self.now_s - 2_710, "reclaim", width - 12, 0.31),
            RescaleRecord(self.now_s - 1_240, "loss", width - 16, 0.88, steps_lost=4),
            RescaleRecord(self.now_s - 310, "grow", width, 0.37),
        )

    # --- books, log and history --------------------------------------------------------------------------------

    def _books(self) -> None:
        hour = 3_600_000_000
        for i, node in enumerate(self.inventory.nodes.values()):
            useful, rescale, idle, lost = 21 * hour + i * 10**7, hour // 9, hour // 2, hour // 50
            key = AccountKey(node.site, node.id, "j-0001", "lin")
            borrowed = useful + rescale + idle + lost
            self.inventory.accounts[key] = Account(key, borrowed, useful, rescale, idle, lost)
        nodes = list(self.inventory.nodes)
        self.inventory.reclaims = tuple(
            ReclaimRecord(self.random.choice(nodes), self.now_s - 7_000 + 50 * i, 30.0, 0.6 + 3.2 * self.random.random(),
                          "the owner's job starts", 0)
            for i in range(138)
        )  # fmt: skip

    def _events(self) -> list[LogRow]:
        told = (
            (5_090, "submitted", "lin submitted train job yuan-m32-pretrain", "j-0001", "", "rpc-7d02c1"),
            (3_900, "node_reported", "r031 to r040: 40 devices are spare", "", "r031", "agt-51b7e0"),
            (3_899, "assign", "revision 3: 164 workers, to grow", "j-0001", "", "agt-51b7e0"),
            (3_898, "reached", "grow: width 164 after a stall of 0.420 s", "j-0001", "", "agt-51b7e0"),
            (1_242, "node_lost", "node cn032 is lost: its agent was silent for 20 s", "", "cn032", "tick-90aa12"),
            (1_241, "work_lost", "4 steps (3.10 s) are lost: loss", "j-0001", "", "tick-90aa12"),
            (1_240, "reached", "loss: width 156 after a stall of 0.880 s", "j-0001", "", "tick-90aa12"),
            (712, "job_ended", "failed: part-0113.txt is not UTF-8 at byte 88,120", "j-0009", "", "site-c4410d"),
            (640, "job_ended", "done: 240 of 240 items", "j-0008", "", "site-c44e9b"),
            (312, "assign", "revision 4: 220 workers, to grow", "j-0001", "", "agt-7b3f02"),
            (310, "reached", "grow: width 220 after a stall of 0.370 s", "j-0001", "", "agt-7b3f02"),
            (95, "step_rejected", "gpu018 has gone silent since the plan was made. The next plan leaves it out.", "j-0002", "gpu018", "plan-3312"),
            (41, "agent_disconnected", "agent of gpu018 is away", "", "gpu018", "grpc-0e11d4"),
            (9, "lease_draining", "lease r041/140 drains: the owner's job 48211 starts, 30.0 s are left", "", "r041", "agt-88c1f4"),
            (9, "lease_draining", "lease r042/141 drains: the owner's job 48211 starts, 30.0 s are left", "", "r042", "agt-88c1f4"),
            (8, "assign", "revision 5: 148 workers, to leave 6 nodes", "j-0001", "", "agt-88c1f4"),
        )  # fmt: skip
        return [
            LogRow(i, self.now_s - ago, kind, message, cause, job=job, node=node)
            for i, (ago, kind, message, job, node, cause) in enumerate(told, start=1)
        ]

    def samples(self, seconds: int) -> list[Sample]:
        """A past that leads up to the present, one sample a second."""
        events = {0.07: 60, 0.19: -110, 0.27: 150, 0.41: -64, 0.52: 88, 0.63: -170, 0.72: 196, 0.86: -40, 0.93: 24}
        present = sum(len(lease.devices) for lease in self.inventory.leases.values())
        level, at = present - sum(events.values()), sorted(events)
        rows: list[Sample] = []
        since = 999
        for second in range(seconds):
            x = second / seconds
            moved = sum(events[e] for e in at if e <= x)
            struck = any(second == math.ceil(e * seconds) for e in at)
            since = 0 if struck else since + 1
            total = level + moved + int(6 * math.sin(second / 97))
            idle = int(10 + 8 * abs(math.sin(second / 411)) + 90 * math.exp(-since / 9))
            rescale = int(44 * math.exp(-since / 14))
            lost = next(
                (-events[e] // 4 for e in at if struck and second == math.ceil(e * seconds) and events[e] < 0), 0
            )
            rows.append(Sample(self.now_s - seconds + second, max(0, total - idle - rescale), rescale, idle, lost))
        return rows


def loss_curve(job: Job, points: int, rng: random.Random) -> list[tuple[int, float]]:
    """(step, loss) up to the job's present, or (step, rate) for a job without a loss."""
    progress = job.progress
    if job.kind is JobKind.TRAIN:
        first = 10.4
        fall = (first - progress.loss) / (1 - 0.12)
        values = [first - fall * (1 - (1 + 30 * i / points) ** -0.62) for i in range(1, points + 1)]
        drift = progress.loss - values[-1]
        values = [value + drift * i / points for i, value in enumerate(values, start=1)]
    else:
        values = [progress.rate * (0.82 + 0.18 * math.tanh(i / 12)) for i in range(1, points + 1)]
    noise = 0.012 if job.kind is JobKind.TRAIN else 0.05
    step = max(1, progress.step // points)
    noisy = [value * (1 + noise * rng.gauss(0, 1)) for value in values]
    return [(progress.step - step * (points - i), value) for i, value in enumerate(noisy, start=1)]


def advance(inventory: FakeInventory, job_id: str, steps: int, loss: float) -> None:
    """Let a job go on."""
    job = inventory.jobs[job_id]
    inventory.jobs[job_id] = replace(job, progress=replace(job.progress, step=job.progress.step + steps, loss=loss))
