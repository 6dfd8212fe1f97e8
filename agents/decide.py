"""What an agent does with its lease: a pure function from what happened to what is to be done.

    IDLE --granted--> GRANTED --join--> RUNNING --reclaim--> DRAINING --leave or deadline--> STOPPING --gone--> IDLE

Times are seconds of a monotonic clock: a jump of the wall clock moves no deadline.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

PATIENCE_S = 2.0
"""Longest time between SIGTERM and SIGKILL."""

MARGIN_S = 2.0
"""Longest time kept before a deadline for killing and clearing up."""


class Phase(StrEnum):
    """How far the lease is on this node."""

    IDLE = "idle"
    GRANTED = "granted"
    RUNNING = "running"
    DRAINING = "draining"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Hold:
    """The lease that this node holds.

    Invariants: `epoch` is 0 exactly when IDLE; `deadline` is set from the reclaim on; `newest` never falls.
    """

    phase: Phase = Phase.IDLE
    epoch: int = 0
    newest: int = 0  # greatest epoch ever heard of; nothing older has any effect
    devices: tuple[str, ...] = ()
    reclaimed_at: float | None = None
    deadline: float | None = None
    cause: str = ""  # of the end: "reclaimed", "released", "raylet_died"
    following: Granted | None = None  # granted while the old lease was being stopped
    following_join: JoinAsked | None = None


# --- what happens ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Granted:
    """The scheduler opened a lease; `spare` are the devices that the node offers now, none: it no longer does."""

    epoch: int
    spare: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JoinAsked:
    """The scheduler wants a raylet under this lease."""

    epoch: int
    ray_address: str
    ray_token: str = field(repr=False)
    ray_version: str
    spare: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeaveAsked:
    """The scheduler wants the lease to end: nothing runs there any more, or must not."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """The owner wants the node back within `grace_s`."""

    grace_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class RayletEnded:
    """The raylet ended without being told to."""


@dataclass(frozen=True, slots=True)
class AllGone:
    """No process of the lease is left; `killed` of them had to be killed."""

    killed: int


Happening = Granted | JoinAsked | LeaveAsked | Reclaimed | RayletEnded | AllGone


# --- what is to be done ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartRaylet:
    """Start a raylet for the lease."""

    join: JoinAsked
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndRaylet:
    """Have the raylet and all that came of it end: SIGTERM at `term_at`, SIGKILL at `kill_at`."""

    epoch: int
    term_at: float
    kill_at: float


@dataclass(frozen=True, slots=True)
class SayReclaim:
    """Tell the scheduler of the reclaim."""

    epoch: int
    deadline: float
    grace_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class SayLeft:
    """Tell the scheduler that the lease is over."""

    epoch: int
    cause: str
    free_s: float
    killed: int


Action = StartRaylet | EndRaylet | SayReclaim | SayLeft
Outcome = tuple[Hold, tuple[Action, ...]]


def ending(now: float, deadline: float) -> tuple[float, float]:
    """When to send SIGTERM and SIGKILL so that the node is free by `deadline`.

    Of a short time a quarter is kept for killing, and a fifth before that for processes to end by themselves.
    """
    left = max(0.0, deadline - now)
    kill_at = deadline - min(MARGIN_S, left / 4)
    return max(now, kill_at - min(PATIENCE_S, left / 5)), max(now, kill_at)


def step(hold: Hold, happening: Happening, now: float) -> Outcome:
    """The lease after `happening`, and what is to be done. Whatever does not concern the lease changes nothing."""
    match happening:
        case Granted():
            return _granted(hold, happening, now)
        case JoinAsked():
            return _join(hold, happening, now)
        case LeaveAsked():
            return _leave(hold, happening, now)
        case Reclaimed():
            return _reclaim(hold, happening, now)
        case RayletEnded():
            return _raylet_ended(hold, now)
        case AllGone():
            return _gone(hold, happening, now)


def _granted(hold: Hold, granted: Granted, now: float) -> Outcome:
    if granted.epoch <= hold.newest:
        return hold, ()
    if hold.phase is Phase.IDLE:
        return _take(hold, granted)
    if hold.phase is Phase.GRANTED:
        taken, actions = _take(hold, granted)
        return taken, (SayLeft(hold.epoch, "released", 0.0, 0), *actions)
    hold, given_up = _without_following(hold, "released")
    stopping, actions = _stop(hold, now, hold.cause or "released")
    return replace(stopping, newest=granted.epoch, following=granted), (*given_up, *actions)


def _take(hold: Hold, granted: Granted) -> Outcome:
    newest = max(hold.newest, granted.epoch)
    if not granted.spare:  # the owner came back while the grant was on its way
        return Hold(newest=newest), (SayLeft(granted.epoch, "reclaimed", 0.0, 0),)
    return Hold(Phase.GRANTED, granted.epoch, newest, granted.spare), ()


def _join(hold: Hold, join: JoinAsked, now: float) -> Outcome:
    if join.epoch > hold.newest:  # its grant was lost on the way
        hold, before = _granted(hold, Granted(join.epoch, join.spare), now)
    else:
        before = ()
    if hold.following and join.epoch == hold.following.epoch:
        return replace(hold, following_join=join), before
    if join.epoch != hold.epoch or hold.phase is not Phase.GRANTED:
        return hold, before
    return replace(hold, phase=Phase.RUNNING), (*before, StartRaylet(join, hold.devices))


def _leave(hold: Hold, leave: LeaveAsked, now: float) -> Outcome:
    if leave.epoch > hold.newest:  # never heard of it, so nothing runs under it
        return replace(hold, newest=leave.epoch), (SayLeft(leave.epoch, "released", 0.0, 0),)
    if hold.following and leave.epoch == hold.following.epoch:
        return _without_following(hold, "released")
    if leave.epoch != hold.epoch or not hold.epoch:
        return hold, ()
    if hold.phase is Phase.GRANTED:
        return Hold(newest=hold.newest), (SayLeft(hold.epoch, "released", 0.0, 0),)
    return _stop(hold, now, hold.cause or "released")


def _without_following(hold: Hold, cause: str) -> Outcome:
    said = (SayLeft(hold.following.epoch, cause, 0.0, 0),) if hold.following else ()
    return replace(hold, following=None, following_join=None), said


def _reclaim(hold: Hold, reclaim: Reclaimed, now: float) -> Outcome:
    hold, said = _without_following(hold, "reclaimed")
    hold, actions = _reclaim_held(hold, reclaim, now)
    return hold, (*said, *actions)


def _reclaim_held(hold: Hold, reclaim: Reclaimed, now: float) -> Outcome:
    deadline = now + reclaim.grace_s
    if hold.phase is Phase.IDLE or (hold.deadline is not None and hold.deadline <= deadline):
        return hold, ()
    notice = SayReclaim(hold.epoch, deadline, reclaim.grace_s, reclaim.cause)
    if hold.phase is Phase.GRANTED:
        return Hold(newest=hold.newest), (notice, SayLeft(hold.epoch, "reclaimed", 0.0, 0))
    phase = Phase.STOPPING if hold.phase is Phase.STOPPING or reclaim.grace_s <= 0 else Phase.DRAINING
    since = now if hold.reclaimed_at is None else hold.reclaimed_at
    cause = hold.cause or "reclaimed"
    drained = replace(hold, phase=phase, deadline=deadline, reclaimed_at=since, cause=cause)
    return drained, (notice, EndRaylet(hold.epoch, *ending(now, deadline)))


def _raylet_ended(hold: Hold, now: float) -> Outcome:
    if hold.phase not in (Phase.RUNNING, Phase.DRAINING):
        return hold, ()
    return replace(hold, phase=Phase.STOPPING, cause=hold.cause or "raylet_died"), ()


def _stop(hold: Hold, now: float, cause: str) -> Outcome:
    if hold.phase is Phase.STOPPING:
        return hold, ()
    end = EndRaylet(hold.epoch, now, now + PATIENCE_S)
    return replace(hold, phase=Phase.STOPPING, cause=cause), (end,)


def _gone(hold: Hold, gone: AllGone, now: float) -> Outcome:
    if hold.phase not in (Phase.RUNNING, Phase.DRAINING, Phase.STOPPING):
        return hold, ()
    free_s = 0.0 if hold.reclaimed_at is None else now - hold.reclaimed_at
    left = SayLeft(hold.epoch, hold.cause or "raylet_died", free_s, gone.killed)
    if not hold.following:
        return Hold(newest=hold.newest), (left,)
    following, actions = _take(Hold(newest=hold.newest), hold.following)
    if hold.following_join:
        following, joined = _join(following, hold.following_join, now)
        actions = (*actions, *joined)
    return following, (left, *actions)
