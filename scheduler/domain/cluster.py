"""Sites, nodes, devices and leases. Times are seconds of the loop's clock (Unix time when live)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class NodeState(StrEnum):
    """Whose a node is."""

    BUSY = "busy"  # its owner uses it
    SPARE = "spare"  # its agent offers it, no lease yet
    LENT = "lent"  # under a lease
    DRAINING = "draining"  # the owner asked for it, work is moving off
    SUSPECT = "suspect"  # its agent's stream broke; nothing new is placed there
    LOST = "lost"  # gone without a word


class LeaseState(StrEnum):
    """How far a lease is."""

    GRANTED = "granted"  # the agent has been told its epoch
    JOINING = "joining"  # the raylet is starting
    READY = "ready"  # workers can be placed on it
    DRAINING = "draining"  # to be empty by its deadline
    ENDED = "ended"


@dataclass(frozen=True, slots=True, order=True)
class LeaseKey:
    """A node and the epoch that fences what is done under this lease of it."""

    node: str
    epoch: int

    def __hash__(self) -> int:
        return self.epoch  # no two leases share one, and leases are looked up all the time

    def __str__(self) -> str:
        return f"{self.node}/{self.epoch}"


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator, or one group of cores on a node without any."""

    id: str
    kind: str
    model: str
    memory_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a site, as its agent last described it."""

    id: str
    site: str
    state: NodeState
    devices: tuple[Device, ...]
    address: str = ""
    spare_devices: tuple[str, ...] = ()
    source: str = ""
    reason: str = ""
    grace_s: float = 0.0
    expected_end_s: float | None = None
    last_report_s: float = 0.0
    agent_instance: str = ""
    agent_connected: bool = False
    agent_rss_bytes: float = 0.0
    agent_cpu_fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to use some devices of a node. Invariant: `ended_s` is set exactly when `state` is ENDED."""

    key: LeaseKey
    site: str
    state: LeaseState
    devices: tuple[Device, ...]
    address: str
    started_s: float
    cohort: str  # nodes that became idle together at one site
    grace_s: float = 0.0
    expected_end_s: float | None = None
    deadline_s: float | None = None  # set while DRAINING
    drain_cause: str = ""
    ended_s: float | None = None
    end_cause: str = ""
    released_s: float | None = None  # when its agent was told that no worker is left
    booked_until_s: float = 0.0  # the books hold its devices' time up to here

    @property
    def is_live(self) -> bool:
        """Whether the lease has not ended."""
        return self.state is not LeaseState.ENDED


@dataclass(frozen=True, slots=True)
class Site:
    """One cluster, and whether its site process is connected."""

    id: str
    connected: bool = False
    instance: str = ""
    ray_address: str = ""
    ray_token: str = field(default="", repr=False)
    ray_version: str = ""


@dataclass(frozen=True, slots=True)
class ReclaimRecord:
    """One hand-back of a node to its owner, as its agent measured it."""

    node: str
    at_s: float
    grace_s: float
    free_s: float
    cause: str
    killed: int
