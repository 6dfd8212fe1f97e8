"""What can happen. Services and executors put events in the loop's inbox; only the loop acts on them.

Every event carries `at_s` and `cause_id`, the id of the stimulus it came from; log rows and steps repeat that id.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.domain.cluster import Device, LeaseKey
from scheduler.domain.jobs import JobKind, KindCurve, ModelShape, RescaleCosts, Role, RoleNeed
from scheduler.domain.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events."""

    at_s: float
    cause_id: str = ""


# --- from agents -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConnected(Event):
    """An agent's stream opened; `epoch` is the lease it still holds, 0 without one."""

    node: str
    site: str
    instance: str
    address: str
    devices: tuple[Device, ...]
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentDisconnected(Event):
    """An agent's stream broke."""

    node: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReported(Event):
    """What an agent judges spare now. No spare devices: the owner uses the node."""

    node: str
    instance: str
    epoch: int
    spare_devices: tuple[str, ...]
    source: str
    reason: str
    grace_s: float
    expected_end_s: float | None = None
    agent_rss_bytes: float = 0.0
    agent_cpu_fraction: float = 0.0
    energy_j: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReclaimed(Event):
    """The owner wants the node back by `deadline_s`."""

    lease: LeaseKey
    deadline_s: float
    grace_s: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RayletStarted(Event):
    """The agent's raylet started, or could not (`error`)."""

    lease: LeaseKey
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLeft(Event):
    """Every process of the lease is gone from the node."""

    lease: LeaseKey
    cause: str
    free_s: float
    killed: int


# --- from sites ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConnected(Event):
    """A site's session opened."""

    site: str
    instance: str
    ray_address: str
    ray_token: str = field(repr=False)
    ray_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteDisconnected(Event):
    """A site's session broke; its workers may well go on."""

    site: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReady(Event):
    """The lease's raylet is alive in the site's Ray cluster."""

    lease: LeaseKey


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGone(Event):
    """The lease's raylet is no longer alive in the site's Ray cluster."""

    lease: LeaseKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentReached(Event):
    """The job runs as revision `revision` says."""

    job: str
    revision: int
    width: int
    cause: str
    stall_s: float
    bytes_moved: int = 0
    at_step: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentRefused(Event):
    """The site cannot carry out a revision."""

    job: str
    revision: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerChanged(Event):
    """A worker is "starting", "running", "left" or "lost"; or "slow", and runs on."""

    job: str
    worker: str
    lease: LeaseKey
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgressed(Event):
    """How far a job is, and how fast it goes at its present width."""

    job: str
    step: int
    total: int
    loss: float
    rate: float
    rate_unit: str
    width: int
    metrics: tuple[tuple[str, float], ...] = ()
    wanted: tuple[tuple[Role, int], ...] = ()  # workers of a role that it could use now


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsLoaded(Event):
    """Tokens that each expert of a served model got since this was last said, layer by layer."""

    job: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkLost(Event):
    """Steps that must be done again, and the wall time they had taken."""

    job: str
    steps: int
    seconds: float
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded(Event):
    """A job ended: outcome "done", "failed" or "cancelled"."""

    job: str
    outcome: str
    message: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointOpened(Event):
    """Where a served model answers."""

    job: str
    url: str


# --- from clients ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSubmitted(Event):
    """A valid spec was submitted, and everything that planning needs has been read from it."""

    job: str
    name: str
    kind: JobKind
    user: str
    request_id: str
    spec_json: str = field(repr=False)
    needs: tuple[RoleNeed, ...]
    weight: float
    device_kinds: tuple[str, ...]
    shape: ModelShape | None
    copies: int
    curve: tuple[tuple[int, float], ...] = ()  # width -> samples per second, where they were measured before
    costs: RescaleCosts = field(default_factory=RescaleCosts)
    priority: int = 0
    deadline_s: float | None = None
    budget_device_s: float | None = None
    kind_curves: tuple[KindCurve, ...] = ()
    wanted: tuple[tuple[Role, int], ...] = ()  # workers of a role that it could use at first


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested(Event):
    """A user wants a job to end."""

    job: str
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainRequested(Event):
    """An operator wants a node to be left within `grace_s`."""

    node: str
    grace_s: float
    cause: str


# --- from the clock --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time passed: leases may have expired, agents may have been silent too long."""
