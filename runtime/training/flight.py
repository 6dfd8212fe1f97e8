"""A switch under way, as its controller follows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from runtime.training.actor import Status
from runtime.training.generation import Generation, Switch
from runtime.training.pulse import Event

OVERDUE_S = 30.0
"""So long after it broke, a participant that has not come out of a switch is killed."""


@dataclass(frozen=True, slots=True)
class Landing:
    """What a switch cost: seconds in which nobody trained, bytes that moved, and where it took effect."""

    stall_s: float = 0.0
    bytes_moved: int = 0
    at_step: int = 0
    cause: str = ""
    moving_s: float = 0.0  # of the stall, while those bytes were on their way

    def after(self, earlier: Landing | None) -> Landing:
        """Both together, if the earlier one has not been reported yet."""
        if earlier is None:
            return self
        stall_s, moved = self.stall_s + earlier.stall_s, self.bytes_moved + earlier.bytes_moved
        return Landing(stall_s, moved, self.at_step, self.cause, self.moving_s + earlier.moving_s)

    def __str__(self) -> str:
        moving = f", {self.moving_s:.3f} s of it while {self.bytes_moved / 1e6:.1f} MB of state moved"
        return f"{self.cause}: nobody trained for {self.stall_s:.3f} s" + (moving if self.bytes_moved else "")


@dataclass
class Flight:
    """Collects what participants say until all are through, or one breaks it."""

    switch: Switch
    is_sent: bool = True  # False: taken over from an earlier controller, which may not have reached everyone
    is_cancelled: bool = False
    _through: dict[str, Event] = field(default_factory=dict)
    _broken_at_s: float | None = None

    def hear(self, worker: str, event: Event) -> None:
        """A participant's event."""
        kind = event["kind"]
        if worker not in self.switch.participants:
            return
        if kind == "lost" or (kind == "broken" and event["number"] == self.switch.number):
            self._broken_at_s = self._broken_at_s or time.monotonic()
        elif kind in ("switched", "left", "parked") and event["number"] == self.switch.number:
            self._through[worker] = {**self._through.get(worker, {}), **event}

    def adopt(self, worker: str, status: Status) -> None:
        """A participant that may have come through before this controller listened."""
        if status.generation is not None and status.generation.number == self.switch.number:
            facts = {"stopped_s": 0.0, "resumed_s": 0.0, "bytes": 0, "step": status.step}
            kind = "parked" if status.phase == "parked" else "switched"
            self.hear(worker, {"kind": kind, "number": self.switch.number, **facts})
        elif status.phase == "left":
            self.hear(worker, {"kind": "left", "number": self.switch.number, "bytes": 0, "step": status.step})

    @property
    def is_complete(self) -> bool:
        """Whether everyone is through."""
        return not self.is_broken and all(self._is_through(worker) for worker in self.switch.participants)

    @property
    def is_broken(self) -> bool:
        """Whether a participant was lost on the way."""
        return self._broken_at_s is not None

    @property
    def is_overdue(self) -> bool:
        """Whether it broke long ago."""
        return self._broken_at_s is not None and time.monotonic() - self._broken_at_s > OVERDUE_S

    def generation_after(self, before: Generation | None) -> Generation | None:
        """Whose members count after a broken switch: the new ones, if anyone has come through to it."""
        reached = any(event["kind"] == "switched" for event in self._through.values())
        return self.switch.generation if reached or before is None else before

    def landing(self) -> Landing:
        """The costs, once it is complete."""
        members = [self._through[worker] for worker in self.switch.generation.workers]
        stopped = [e["stopped_s"] for e in members if e.get("stopped_s")]
        resumed = max(e["resumed_s"] for e in members)
        return Landing(
            stall_s=max(resumed - max(stopped), 0.0) if stopped else 0.0,
            bytes_moved=sum(e["bytes"] for e in self._through.values()),
            at_step=max(e["step"] for e in members),
            cause=self.switch.cause,
            moving_s=max(e.get("moving_s", 0.0) for e in self._through.values()),
        )

    def _is_through(self, worker: str) -> bool:
        kind = self._through.get(worker, {}).get("kind")
        if worker not in self.switch.generation.workers:
            return kind == "left"
        return kind == ("parked" if self.switch.then == "park" else "switched")
