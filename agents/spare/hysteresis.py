"""When use by others makes a device busy, and when it is spare again: pure, so that its laws can be tested."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Loads are fractions of a device.

    Between the two loads nothing changes. Busy comes fast, for the owner's sake; spare comes late, because an owner
    who pauses usually comes back.
    """

    busy_above: float = 0.25
    spare_below: float = 0.10
    busy_after_s: float = 1.0
    spare_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0 <= self.spare_below <= self.busy_above:
            raise ValueError(f"spare-below ({self.spare_below}) must lie between 0 and busy-above ({self.busy_above})")
        if self.busy_after_s < 0 or self.spare_after_s < 0:
            raise ValueError("busy-after-s and spare-after-s must not be negative")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`spare`, and since when every load has spoken for the opposite (None: the last one did not)."""

    spare: bool = False
    against_since: float | None = None


def judge(verdict: Verdict, load: float, now_s: float, thresholds: Thresholds) -> Verdict:
    """The verdict after `load` was seen at `now_s`.

    It turns only after the load was on the other side of the other threshold, at every look, for the whole dwell
    time. So it turns to spare at most once in `spare_after_s`, whatever the load does.
    """
    against = load > thresholds.busy_above if verdict.spare else load < thresholds.spare_below
    if not against:
        return Verdict(verdict.spare)
    since = now_s if verdict.against_since is None else verdict.against_since
    dwell_s = thresholds.busy_after_s if verdict.spare else thresholds.spare_after_s
    if now_s - since >= dwell_s:
        return Verdict(not verdict.spare)
    return Verdict(verdict.spare, since)
