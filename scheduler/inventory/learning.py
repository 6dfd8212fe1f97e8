"""What measurements teach of a job: its rate at each width, on each kind of device, and what a rescale costs it."""

from __future__ import annotations

from dataclasses import replace

from scheduler.domain import events
from scheduler.domain.jobs import KindCurve, Point, RescaleCosts
from scheduler.planning.worth import SURE

NEW_MEASUREMENT_WEIGHT = 0.3
"""How much a new measurement of a rate or a stall counts against the old ones."""

_GROWTHS = ("grow", "move")

Curve = tuple[tuple[int, float], ...]
"""(width, samples per second), sorted."""


def learn_costs(costs: RescaleCosts, e: events.AssignmentReached) -> RescaleCosts:
    """The costs, with the stall of a rescale that was reached."""
    if e.cause in ("start", "straggler") or not e.width:
        return costs  # nothing that ran stood still; or nobody came or went
    if e.cause in _GROWTHS:
        return replace(costs, up_s=_blend(costs.up_s, e.stall_s))
    return replace(costs, down_s=_blend(costs.down_s, e.stall_s))


def learn_rate(curve: Curve, width: int, rate: float) -> Curve:
    """The curve, with a measured rate."""
    points = dict(curve)
    points[width] = _blend(points[width], rate) if width in points else rate
    return tuple(sorted(points.items()))


def learn_kind(
    curves: tuple[KindCurve, ...], kind: str, before: Curve, width: int, rate: float
) -> tuple[KindCurve, ...]:
    """The curves by kind, with a rate measured on one (empty: it is not known which).

    What was known `before` any kind was measured counts as the first one's.
    """
    if not kind:
        return curves
    of_kind = {curve.kind: curve.points for curve in curves}
    known = of_kind.get(kind, () if curves else tuple(Point(*point) for point in before))
    points = {point.width: point for point in known}
    old = points.get(width)
    points[width] = _measured_again(old, rate) if old else Point(width, rate)
    of_kind[kind] = tuple(points[w] for w in sorted(points))
    return tuple(KindCurve(name, of_kind[name]) for name in sorted(of_kind))


def _measured_again(old: Point, rate: float) -> Point:
    """The mean of its measurements, up to so many that the oldest fade."""
    count = old.count + 1
    return Point(old.width, old.rate + (rate - old.rate) / min(count, SURE), count)


def _blend(old: float, new: float) -> float:
    return old + NEW_MEASUREMENT_WEIGHT * (new - old)
