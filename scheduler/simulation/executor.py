"""The executor's twin: plays agents, sites and jobs on a manual clock, in one process, the same way every time.

It is driven from both sides. The loop calls the executor port; whoever plays the owners (a trace, a test) calls
`owner_lends`, `owner_reclaims` and `kill`. What happens then goes into the loop's inbox as events, at once or when
its time has come:

    while (t := min(next of the trace, twin.next_s())) is not None:
        clock.advance_to(t); twin.play(t); loop.turn(t)
"""

from __future__ import annotations

from collections.abc import Callable

from scheduler.clock import Clock
from scheduler.domain.cluster import Device, Lease, LeaseKey, Site
from scheduler.domain.jobs import Job, RescaleCosts
from scheduler.domain.plan import Assign
from scheduler.simulation.agenda import Agenda
from scheduler.simulation.twin_agents import AgentTwins
from scheduler.simulation.twin_jobs import Work
from scheduler.simulation.twin_sites import Post, SiteTwins


class TwinExecutor:
    """See the module.

    `warmup_s` passes from `join` until a node is ready. `costs` says how long a job stands still; `work` what a job's
    work is (endless at one sample a second and worker by default).
    """

    def __init__(
        self,
        clock: Clock,
        post: Post,
        warmup_s: float = 0.0,
        costs: RescaleCosts | None = None,
        work: Callable[[Job], Work] = lambda job: Work(),
    ) -> None:
        self._agenda = Agenda(clock)
        self._sites = SiteTwins(self._agenda, post, costs or RescaleCosts(), work)
        self._agents = AgentTwins(self._agenda, post, self._sites, warmup_s)

    # --- time --------------------------------------------------------------------------------------------------

    def next_s(self) -> float | None:
        """When something happens next by itself; None if nothing does."""
        return self._agenda.next_s()

    def play(self, now_s: float) -> None:
        """Let everything happen that is due."""
        self._agenda.play(now_s)

    # --- sites and agents come and go --------------------------------------------------------------------------

    def open_site(self, site: str) -> None:
        """A site connects, for the first time or again."""
        self._sites.open(site)

    def drop_site(self, site: str) -> None:
        """A site's session breaks; its work goes on."""
        self._sites.drop(site)

    def add_node(self, node: str, site: str, devices: tuple[Device, ...]) -> None:
        """A node's agent connects; its owner uses it."""
        self._agents.add(node, site, devices)

    def drop_agent(self, node: str) -> None:
        """An agent's stream breaks; what runs on the node goes on."""
        self._agents.drop(node)

    def return_agent(self, node: str) -> None:
        """A living agent connects again."""
        self._agents.come_back(node)

    def reconnect(self) -> None:
        """The scheduler was away: every site and agent that was connected connects to it again."""
        for site in sorted(site for site in self._agents.sites if not self._sites.is_away(site)):
            self._sites.open(site)
        self._agents.reconnect()

    # --- owners and accidents ----------------------------------------------------------------------------------

    def owner_lends(self, node: str, grace_s: float = 0.0, expected_end_s: float | None = None) -> None:
        """The node's owner has nothing for it. A node that was killed comes back first."""
        self._agents.lend(node, grace_s, expected_end_s)

    def owner_reclaims(self, node: str, grace_s: float = 0.0, cause: str = "owner") -> None:
        """The node's owner wants it back; at the deadline whatever runs there is killed."""
        self._agents.reclaim(node, grace_s, cause)

    def kill(self, node: str) -> None:
        """The node dies without a word; its site notices at once."""
        self._agents.kill(node)

    def lose_worker(self, job: str, worker: str) -> None:
        """A worker dies alone."""
        self._sites.lose_worker(job, worker)

    def runs(self, job: str, worker: str) -> bool:
        """Whether the site runs this worker now."""
        return self._sites.runs(job, worker)

    def running_on(self) -> list[LeaseKey]:
        """The lease of every worker that runs, starts or leaves now."""
        return self._sites.running_on()

    def epoch_of(self, node: str) -> int:
        """The lease that the node's agent knows of, 0 without one."""
        return self._agents.epoch_of(node)

    # --- the executor port -------------------------------------------------------------------------------------

    def grant(self, lease: Lease) -> None:
        """See `Executor`."""
        self._agents.grant(lease)

    def join(self, lease: Lease, site: Site) -> None:
        """See `Executor`."""
        self._agents.join(lease)

    def assign(self, job: Job, step: Assign, leases: tuple[Lease, ...], lost_workers: tuple[str, ...]) -> None:
        """See `Executor`."""
        if not self._sites.is_away(job.site):
            slots = step.assignment.workers
            missing = {s.worker for s in slots if self._agents.epoch_of(s.lease.node) != s.lease.epoch}
            self._sites.assign(job, step, missing)

    def end(self, job: Job, cause: str) -> None:
        """See `Executor`."""
        if not self._sites.is_away(job.site):
            self._sites.end(job)

    def leave(self, lease: Lease, cause: str) -> None:
        """See `Executor`."""
        self._agents.leave(lease)

    def reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """See `Executor`."""
        self._agents.ask_reclaim(lease, grace_s, cause)

    def forget(self, key: LeaseKey, site: str) -> None:
        """See `Executor`."""
        self._sites.lose_workers(key)
