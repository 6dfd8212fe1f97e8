"""The batch system of a machine, as an ordinary user of it sees it: one protocol, several systems behind it.

A pilot is a batch job of one node with a node agent inside. Times are seconds.
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


def short_name(node: str) -> str:
    """What a node is called at the scheduler: its name without user and domain, or all of its address, with dashes."""
    host = node.rpartition("@")[2]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host.partition(".")[0]
    return host.replace(".", "-").replace(":", "-").strip("-")


class PilotState(StrEnum):
    """How far a pilot is, in the eyes of the batch system."""

    PENDING = "pending"
    RUNNING = "running"
    ENDING = "ending"


@dataclass(frozen=True, slots=True)
class PilotJob:
    """One pilot. `length_s` is its time limit, `node` the batch system's name of its node, empty while it waits."""

    id: str
    state: PilotState
    length_s: float
    node: str = ""

    @property
    def short_node(self) -> str:
        """What its node is called at the scheduler."""
        return short_name(self.node)


@dataclass(frozen=True, slots=True)
class Machine:
    """What one look at the batch system shows of the nodes that pilots may use.

    `nodes` counts those that can run jobs, `idle` are those that no job uses, `leaving` those that an operator is
    taking out of service. `window_s` is the time until the first waiting job of others is expected to start, None if
    none waits or nobody knows.
    """

    nodes: int
    idle: tuple[str, ...] = ()
    leaving: tuple[str, ...] = ()
    pilots: tuple[PilotJob, ...] = ()
    waiting: int = 0
    window_s: float | None = None

    def in_state(self, state: PilotState) -> tuple[PilotJob, ...]:
        """Pilots in one state."""
        return tuple(pilot for pilot in self.pilots if pilot.state is state)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the system lets a pilot have.

    `notice_s` is the time between its warning to a pilot and the kill. Where it is `preemptible`, jobs of others take
    a pilot's node; elsewhere they wait for its end.
    """

    notice_s: float
    preemptible: bool
    longest_s: float = math.inf
    step_s: float = 60.0  # time limits are multiples of this


@dataclass(frozen=True, slots=True, order=True)
class Order:
    """So many pilots of one length. The greater `nice`, the later they are to start."""

    length_s: float
    count: int
    nice: int


class Unreachable(Exception):
    """The batch system does not answer now; it may later."""


class Refused(Exception):
    """The batch system says no. The message carries its own words."""


class BatchSystem(Protocol):
    """A machine's batch system. Every method may raise Unreachable or Refused."""

    name: str

    async def limits(self) -> Limits:
        """What pilots may have. Refused where they may not exist at all, such as in a partition that is gone."""

    async def look(self) -> Machine:
        """One look at nodes and queue. Refused where the place for pilots is gone."""

    async def submit(self, order: Order) -> None:
        """Have so many more pilots wait."""

    async def cancel(self, pilots: Sequence[str]) -> None:
        """End these pilots, whether they wait or run; a running one gets its notice."""

    async def cancel_all(self) -> None:
        """End all pilots of this user and site, those that no look has shown yet included."""
