"""What a sequence of training steps says of a rescale: pure, the same for every contestant."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STEPS_AFTER = 5
"""Steps after a rescale whose median time counts as a step that nothing disturbs."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step that was taken: its number from 1, the Unix time of its end, and by how many workers."""

    number: int
    end_s: float
    width: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a rescale cost the job. `asked_s`: from what caused it to the first step's end at the new width."""

    stall_s: float
    recomputed: int
    asked_s: float


def cost(steps: Sequence[Step], caused_s: float, width: int) -> Cost | None:
    """Of the first change to `width` after `caused_s`; None until enough steps were taken after it.

    The stall is the time between the last step's end before the change and the first one's after it, less the time
    that a step takes: how long nobody trained, whatever it was spent on.
    """
    first = next(
        (i for i, s in enumerate(steps) if i and s.end_s > caused_s and s.width == width != steps[i - 1].width), None
    )
    if first is None or len(steps) <= first + STEPS_AFTER:
        return None
    gaps = [b.end_s - a.end_s for a, b in zip(steps[first:], steps[first + 1 : first + 1 + STEPS_AFTER], strict=False)]
    gap_s = steps[first].end_s - steps[first - 1].end_s
    done = max(step.number for step in steps[:first])
    return Cost(
        stall_s=max(gap_s - statistics.median(gaps), 0.0),
        recomputed=max(done + 1 - steps[first].number, 0),
        asked_s=steps[first].end_s - caused_s,
    )
