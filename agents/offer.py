"""What the node offers to the scheduler: what the sources judge spare, less what stands against it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agents.spare import Judgement

SHORTEST_LEASE_S = 30.0
"""A node whose owner returns sooner than this after the notice is not worth a start."""


@dataclass(frozen=True, slots=True)
class Objection:
    """Why the node must not be lent, whatever the sources say."""

    source: str
    reason: str


def offer(judgement: Judgement, objection: Objection | None, lent: bool, now_s: float, grace_s: float) -> Judgement:
    """The judgement with `grace_s` filled in, and with nothing spare where something stands against lending."""
    whole = replace(judgement, grace_s=grace_s if judgement.grace_s is None else judgement.grace_s)
    if objection:
        return replace(whole, spare=(), source=objection.source, reason=objection.reason)
    if not whole.spare or whole.ends_at is None or lent:
        return whole
    left_s = whole.ends_at - now_s - (whole.grace_s or 0.0)
    if left_s < SHORTEST_LEASE_S:
        return replace(whole, spare=(), reason=f"{whole.reason}; too short a time is left to lend it")
    return whole


def due_reclaim(offered: Judgement, lent: tuple[str, ...], now_s: float) -> tuple[float, str] | None:
    """(grace in seconds, cause) if a lease of the devices `lent` must end now, else None.

    That is so when the owner uses one of them, or when no more than the notice is left to a known end.
    """
    grace_s = offered.grace_s or 0.0
    if not lent:
        return None
    if offered.ends_at is not None and now_s >= offered.ends_at - grace_s:
        return max(0.0, min(grace_s, offered.ends_at - now_s)), f"{offered.source}: the known end is near"
    if not set(lent) <= set(offered.spare):
        return grace_s, f"{offered.source}: {offered.reason}"
    return None


def pause_after_failures_s(failures: int) -> float:
    """How long a node whose raylet failed so many times in a row is not offered: 5 s, doubling, up to 5 minutes."""
    return min(300.0, 5.0 * 2.0 ** min(failures - 1, 10)) if failures else 0.0
