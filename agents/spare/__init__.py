"""Who says whether a node is spare: sources behind one protocol, and how their words are put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Now(NamedTuple):
    """The same instant on two clocks: `mono_s` for what is measured, `unix_s` for what is said and for calendars."""

    mono_s: float
    unix_s: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What may be lent now, and why.

    `ends_at` is when the owner takes the node back for certain, on the monotonic clock; `grace_s` the notice that a
    source knows of, None where it knows none.
    """

    spare: tuple[str, ...]
    source: str
    reason: str
    ends_at: float | None = None
    grace_s: float | None = None


class Source(Protocol):
    """One who judges. `judge` is asked every few seconds and never raises for what it cannot know."""

    name: str

    async def judge(self, now: Now) -> Judgement:
        """What is spare now."""


def together(judgements: Sequence[Judgement], devices: tuple[str, ...]) -> Judgement:
    """A device is spare if every source says so; the earliest end and the shortest grace hold.

    The source and reason are those of the first that keeps a device back, else of the first.
    """
    spare = tuple(d for d in devices if all(d in j.spare for j in judgements))
    speaker = next((j for j in judgements if set(j.spare) != set(devices)), judgements[0])
    ends = [j.ends_at for j in judgements if j.ends_at is not None]
    graces = [j.grace_s for j in judgements if j.grace_s is not None]
    return Judgement(
        spare=spare,
        source=speaker.source,
        reason=speaker.reason,
        ends_at=min(ends, default=None),
        grace_s=min(graces, default=None),
    )
