"""Lengths of pilots, learned from how long the machine's own nodes stay idle. Pure."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable, Sequence

HPC_WHISK_S = tuple(60.0 * minutes for minutes in (2, 4, 6, 8, 14, 22, 34, 56, 90))
"""The bag of HPC-Whisk (arXiv 2211.00717): what is used until enough was seen."""

ENOUGH = 30
"""Idle intervals to have seen before they say anything."""


def useful_s(idle_s: float, lengths_s: Sequence[float], warm_up_s: float) -> float:
    """Seconds of one idle interval that pilots of these (ascending) lengths can use.

    Each time the longest that still fits is taken, and each loses its warm-up.
    """
    used_s, left_s = 0.0, idle_s
    while (fits := bisect.bisect_right(lengths_s, left_s)) > 0:
        length_s = lengths_s[fits - 1]
        times = int(left_s // length_s)
        used_s += times * max(0.0, length_s - warm_up_s)
        left_s -= times * length_s
    return used_s


def learn(
    intervals_s: Sequence[float], count: int, warm_up_s: float, candidates_s: Sequence[float] = HPC_WHISK_S
) -> tuple[float, ...]:
    """The `count` or fewer of the candidates that use the seen intervals best, ascending.

    Greedy: the one that adds most comes first. With fewer than ENOUGH intervals: all candidates.
    """
    if len(intervals_s) < ENOUGH:
        return tuple(sorted(candidates_s))
    chosen: tuple[float, ...] = ()
    best_s = 0.0
    while len(chosen) < count:
        trials = [tuple(sorted((*chosen, length_s))) for length_s in candidates_s if length_s not in chosen]
        scored = [(sum(useful_s(idle_s, trial, warm_up_s) for idle_s in intervals_s), trial) for trial in trials]
        value_s, trial = max(scored, default=(0.0, chosen), key=lambda pair: (pair[0], [-s for s in pair[1]]))
        if value_s <= best_s:
            break
        best_s, chosen = value_s, trial
    return chosen or (min(candidates_s),)


class IdleWatch:
    """Idle intervals as successive looks show them: a node counts as idle while no job of others is on it."""

    def __init__(self, most: int = 2000) -> None:
        self._since: dict[str, float] = {}
        self._seen: deque[float] = deque(maxlen=most)

    @property
    def intervals_s(self) -> tuple[float, ...]:
        """Lengths of those that have ended, oldest first."""
        return tuple(self._seen)

    def look(self, now_s: float, idle: Iterable[str]) -> None:
        """These nodes are idle, or ours, now."""
        now_idle = set(idle)
        for node in sorted(self._since.keys() - now_idle):
            self._seen.append(now_s - self._since.pop(node))
        for node in now_idle:
            self._since.setdefault(node, now_s)
