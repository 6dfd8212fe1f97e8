"""The executor port: how committed steps reach the world. What happens then comes back as events in the inbox.

Two homes: `scheduler.rpc` sends steps to sites and agents over gRPC; `scheduler.simulation` carries them out on a
manual clock. One contract suite (`tests/contract/`) runs against both.
"""

from __future__ import annotations

from typing import Protocol

from scheduler.domain.cluster import Lease, LeaseKey, Site
from scheduler.domain.jobs import Job
from scheduler.domain.plan import Assign


class Executor(Protocol):
    """Every call returns at once, never raises for a peer that is away, and is idempotent.

    What a peer missed while it was away is sent again by the loop when it connects.
    """

    def grant(self, lease: Lease) -> None:
        """Tell the node's agent the epoch of its new lease."""

    def join(self, lease: Lease, site: Site) -> None:
        """Have the node's agent start its raylet in the site's Ray cluster."""

    def assign(self, job: Job, step: Assign, leases: tuple[Lease, ...], lost_workers: tuple[str, ...]) -> None:
        """Give the job's site the set of workers it is to have; `leases` are those that the workers are on."""

    def end(self, job: Job, cause: str) -> None:
        """Have the job's site end the job and all of its workers."""

    def leave(self, lease: Lease, cause: str) -> None:
        """Have the node's agent stop its raylet: nothing of ours runs there any more, or it must not."""

    def reclaim(self, lease: Lease, grace_s: float, cause: str) -> None:
        """Pass an operator's drain on to the node's agent, which then reclaims as if its owner had asked."""

    def forget(self, key: LeaseKey, site: str) -> None:
        """Tell the site that the lease is over."""
