"""What `fallow.Client` returns. Times are Unix seconds, durations seconds, sizes bytes; everything is frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was refused or left undone: a stable `code`, what is wrong, and what to do."""

    code: str
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class DeviceSeconds:
    """What became of borrowed device time. Always borrowed = useful + rescale + idle + lost (law 8)."""

    borrowed: float
    useful: float
    rescale: float
    idle: float
    lost: float


@dataclass(frozen=True, slots=True)
class Worker:
    """One worker of a job: its role, the node and epoch of its lease, its devices and the experts it hosts."""

    id: str
    role: str
    node: str
    epoch: int
    devices: tuple[str, ...]
    experts: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Rescale:
    """One change of a job's width or nodes, and how long the job stood still for it."""

    at_s: float
    cause: str
    width: int
    stall_s: float
    bytes_moved: int
    at_step: int
    steps_lost: int


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job as it is now. `waiting` says why it does not run, or not at its full width."""

    id: str
    name: str
    kind: str
    state: str
    user: str
    width: int
    min_width: int
    max_width: int
    submitted_s: float
    started_s: float | None
    ended_s: float | None
    step: int
    total: int
    loss: float
    rate: float
    rate_unit: str
    message: str
    output: str
    endpoint: str
    waiting: Reason | None
    workers: tuple[Worker, ...]
    rescales: tuple[Rescale, ...]
    device_seconds: DeviceSeconds
    steps_lost: int
    metrics: dict[str, float] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def succeeded(self) -> bool:
        """Whether the job has ended well."""
        return self.state == "done"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job, what caused it, and the job after it. Sequences only grow."""

    sequence: int
    at_s: float
    kind: str
    message: str
    caused_by: str
    job: Job


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that a worker wrote."""

    at_s: float
    worker: str
    line: str


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator of a node, or one group of its cores."""

    id: str
    kind: str
    model: str
    memory_bytes: int
    cores: int


@dataclass(frozen=True, slots=True)
class Reclaim:
    """One hand-back of a node: it was free of our processes `free_s` after its owner asked."""

    at_s: float
    grace_s: float
    free_s: float
    cause: str
    killed: int


@dataclass(frozen=True, slots=True)
class Node:
    """A machine of a site as its agent last described it."""

    id: str
    site: str
    state: str
    devices: tuple[Device, ...]
    spare_devices: tuple[str, ...]
    source: str
    reason: str
    epoch: int | None
    lease_state: str
    lease_started_s: float | None
    expected_end_s: float | None
    deadline_s: float | None
    grace_s: float
    last_report_s: float
    workers: tuple[Worker, ...]
    device_seconds: DeviceSeconds
    agent_rss_bytes: float
    agent_cpu_fraction: float
    address: str
    reclaims: tuple[Reclaim, ...]


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job that a submit made, or (`existed`) had made before under the same request id."""

    job: str
    existed: bool


@dataclass(frozen=True, slots=True)
class Why:
    """Why a job is as it is: reasons first, then its last events, each with what caused it."""

    job: Job
    reasons: tuple[Reason, ...]
    events: tuple[JobEvent, ...]


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Borrowed time of one job, node, site or user."""

    key: str
    device_seconds: DeviceSeconds
    energy_j: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Borrowed time by row, and its total."""

    rows: tuple[UsageRow, ...]
    total: DeviceSeconds


@dataclass(frozen=True, slots=True)
class Token:
    """A token's name and role; the secret itself is shown once, when it is made."""

    name: str
    role: str
    created_s: float
    expires_s: float | None
