"""Laws 2, 3, 4, 7 and 8 under any interleaving of reports, reclaims, losses, submits, crashes and full disks.

The machine plays owners, users and accidents against a whole scheduler and its twin. All invariants are asserted
after each step (safety); in the end everything heals, and every feasible job must run (liveness).
"""

from __future__ import annotations

import contextlib
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from scheduler.domain import events
from scheduler.domain.cluster import LeaseKey
from scheduler.domain.jobs import JobKind, JobState, Role, RoleNeed
from scheduler.domain.ledger import whole_us
from scheduler.domain.reasons import Reason
from scheduler.planning.plan import plan
from tests.scheduler.world import SERVE, SHAPE, World, devices

MAX_NODES = 8
PICK = st.integers(0, 10**6)


class WholeCore(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(warmup_s=1.0)
        self.names: list[str] = []
        self.dead: set[str] = set()
        self.submitted: list[str] = []
        self.acknowledged: set[str] = set()

    # --- what happens --------------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        self.world.add_site("s")
        self.world.add_site("t")
        self.add_node("s", 1)
        self.pass_time(2.0)

    @precondition(lambda self: len(self.names) < MAX_NODES)
    @rule(site=st.sampled_from("st"), each=st.integers(1, 2))
    def add_node(self, site: str, each: int) -> None:
        name = f"n{len(self.names)}"
        self.world.twin.add_node(name, site, devices(each))
        self.world.twin.owner_lends(name)
        self.names.append(name)

    @rule(pick=PICK, act=st.sampled_from(["lend", "reclaim", "reclaim at once", "kill", "kill three", "drain"]))
    def owner(self, pick: int, act: str) -> None:
        """An owner, or an operator, wants something of a node."""
        node, twin = self._node(pick), self.world.twin
        if act == "lend":
            twin.return_agent(node)
            self.dead.discard(node)
            twin.owner_lends(node)
        elif act == "drain":
            at_s = self._now()
            self.world.loop.post(events.DrainRequested(at_s=at_s, node=node, grace_s=5.0, cause="maintenance"))
        elif act.startswith("reclaim"):
            if node not in self.dead:
                twin.owner_reclaims(node, 0.0 if act == "reclaim at once" else 0.1 * (pick % 50))
        else:
            for number in range(3 if act == "kill three" else 1):
                self.dead.add(self._node(pick + number))
                twin.kill(self._node(pick + number))

    @rule(pick=PICK, act=st.sampled_from(["drop agent", "return agent", "drop site", "return site"]))
    def link(self, pick: int, act: str) -> None:
        """A connection breaks or comes back."""
        twin, site = self.world.twin, "st"[pick % 2]
        match act:
            case "drop agent":
                twin.drop_agent(self._node(pick))
            case "return agent":
                twin.return_agent(self._node(pick))
            case "drop site":
                twin.drop_site(site)
            case "return site":
                twin.open_site(site)

    @rule(pick=PICK, kind=st.sampled_from(["train", "moe", "serve", "task"]), least=st.integers(1, 3))
    def submit(self, pick: int, kind: str, least: int) -> None:
        """A user submits a job."""
        most = least + pick % 4
        match kind:
            case "serve":
                self._submit(**SERVE)
            case "task":
                self._submit(kind=JobKind.TASK, needs=(RoleNeed(Role.RUNNER, 1, most),))
            case _:
                shape = SHAPE if kind == "moe" else None
                self._submit(needs=(RoleNeed(Role.TRAINER, least, most),), shape=shape, weight=1.0 + pick % 3)

    @precondition(lambda self: self.submitted)
    @rule(pick=PICK, act=st.sampled_from(["cancel", "refuse", "lose worker", "lose worker", "measure", "lose work"]))
    def job_news(self, pick: int, act: str) -> None:
        """Something becomes of a job."""
        job = self.world.inventory.jobs.get(self.submitted[pick % len(self.submitted)])
        if job is None:
            return
        at_s, post, twin = self._now(), self.world.loop.post, self.world.twin
        match act:
            case "cancel":
                post(events.CancelRequested(at_s=at_s, job=job.id, user="ada"))
            case "refuse" if job.state is JobState.STARTING:
                reason, revision = (
                    Reason("port_in_use", "the port is in use.", "Choose another."),
                    job.assignment_revision,
                )
                post(events.AssignmentRefused(at_s=at_s, job=job.id, revision=revision, reason=reason))
            case "lose worker":
                workers = [w for w in self.world.inventory.workers.values() if twin.runs(w.job, w.id)]
                if workers:
                    twin.lose_worker(workers[pick % len(workers)].job, workers[pick % len(workers)].id)
            case "measure":
                rate, unit = 1.0 + pick % 9, "samples/s"
                post(
                    events.JobProgressed(
                        at_s=at_s, job=job.id, step=1, total=0, loss=1.0, rate=rate, rate_unit=unit, width=job.width
                    )
                )
            case "lose work":
                post(events.WorkLost(at_s=at_s, job=job.id, steps=3, seconds=0.5 * (pick % 20), cause="test"))

    @rule(pick=PICK, epoch=st.integers(0, 3))
    def old_news(self, pick: int, epoch: int) -> None:
        """Messages of past epochs and revisions, of which nothing may come."""
        node, at_s = self._node(pick), self._now()
        lease = self.world.inventory.live_lease(node)
        stale = LeaseKey(node, max(0, (lease.key.epoch if lease else 99) - 1 - epoch))
        before = self._standing(node)
        for event in (
            events.NodeReclaimed(at_s=at_s, lease=stale, deadline_s=at_s, grace_s=0.0, cause="old"),
            events.NodeReady(at_s=at_s, lease=stale),
            events.NodeGone(at_s=at_s, lease=stale),
            events.RayletStarted(at_s=at_s, lease=stale, error="old"),
            events.NodeLeft(at_s=at_s, lease=stale, cause="reclaimed", free_s=0.0, killed=0),
            events.WorkerChanged(at_s=at_s, job="job-000001", worker="nobody", lease=stale, state="lost"),
            events.AssignmentReached(at_s=at_s, job="job-000001", revision=0, width=1, cause="old", stall_s=1.0),
        ):
            self.world.inventory.apply(event)
        assert self._standing(node) == before

    @rule(act=st.sampled_from(["crash", "disk full"]))
    def scheduler(self, act: str) -> None:
        """The scheduler itself is struck."""
        if act == "crash":
            self._crash()
            return
        self.world.store.full = True  # a turn that cannot be saved: nothing of it leaves, nothing of it is lost
        with contextlib.suppress(OSError):
            self.world.turn()
        self.world.store.full = False

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0, 25.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.run(seconds)
        self.acknowledged.update(self.submitted)

    @rule(seconds=st.sampled_from([0.1, 0.4, 0.9]))
    def pass_moment(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule()
    def settle(self) -> None:
        self.pass_time(5.0)

    # --- what must hold ------------------------------------------------------------------------------------

    @invariant()
    def books_and_states(self) -> None:
        self.world.inventory.check()

    @invariant()
    def no_lease_carries_more_than_it_has(self) -> None:
        """What really runs, not what the scheduler believes."""
        running = Counter(self.world.twin.running_on())
        for key, count in running.items():
            assert count <= len(self.world.store.leases[key].devices), f"{key} carries {count} workers"

    @invariant()
    def every_expert_is_hosted(self) -> None:
        for job in self.world.inventory.jobs.values():
            if job.shape and job.width:
                hosted = Counter(pair for slot in job.assignment.workers for pair in slot.experts)
                assert len(hosted) == job.shape.layers * job.shape.experts, f"{job.id} misses experts"
                assert job.kind is JobKind.SERVE or set(hosted.values()) == {1}, f"{job.id}: an expert with two owners"

    @invariant()
    def nothing_acknowledged_is_lost(self) -> None:
        assert self.acknowledged <= self.world.inventory.jobs.keys()

    @invariant()
    def waiting_has_a_reason(self) -> None:
        if self.world.loop.inventory.version == self.world.loop.planned_version:
            for job in self.world.inventory.jobs.values():
                if job.state in (JobState.QUEUED, JobState.PARKED):
                    assert self.world.loop.unplaced[job.id].remedy, f"{job.id} waits for no reason"

    def teardown(self) -> None:
        """All heals: every job that can run runs, and there is nothing more to plan."""
        for site in "st":
            self.world.twin.open_site(site)
        for node in self.names:
            self.world.twin.return_agent(node)
        self.world.run(400.0, step_s=5.0)
        for number in range(4 * len(self.submitted) + 1):
            for site in "st":
                self.world.twin.add_node(f"more-{site}{number}", site, devices(2))
                self.world.twin.owner_lends(f"more-{site}{number}")
        self.world.run(120.0, step_s=1.0)
        self.world.inventory.settle(self._now())
        self.world.turn()
        self.world.inventory.check()
        self._recount_borrowed()
        for job in self.world.inventory.jobs.values():
            running = job.state is JobState.RUNNING or not job.state.is_live
            assert running, f"{job} could run: {self.world.loop.unplaced.get(job.id)}"
            assert not job.state.is_live or job.width == job.max_width, f"{job} could be wider"
        snapshot = self.world.inventory.snapshot(self._now())
        assert not plan(snapshot).steps

    def _recount_borrowed(self) -> None:
        """Law 8 from the store alone: every lease's life, over all crashes, is in the books to the microsecond."""
        lives, booked = Counter[str](), Counter[str]()
        for lease in self.world.store.leases.values():
            end_s = self._now() if lease.ended_s is None else lease.ended_s
            lives[lease.key.node] += len(lease.devices) * (whole_us(end_s) - whole_us(lease.started_s))
        for account in self.world.store.accounts.values():
            booked[account.key.node] += account.borrowed_us
        assert +lives == +booked

    # --- short forms ---------------------------------------------------------------------------------------

    def _now(self) -> float:
        return self.world.clock.now_s()

    def _standing(self, node: str) -> object:
        lease = self.world.inventory.live_lease(node)
        workers = [(w.id, w.state) for w in self.world.inventory.workers_on(lease.key)] if lease else []
        return lease and (lease.key, lease.state, lease.deadline_s), workers

    def _node(self, pick: int) -> str:
        return self.names[pick % len(self.names)]

    def _crash(self) -> None:
        """What was in the inbox was never acknowledged; its submitter would send it again."""
        self.world.crash()
        known = self.world.inventory.jobs.keys() | self.acknowledged
        self.submitted = [job for job in self.submitted if job in known]

    def _submit(self, **changes: object) -> None:
        if len(self.submitted) < 5:
            self.submitted.append(self.world.submit(**changes))


WholeCore.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWholeCore = WholeCore.TestCase
