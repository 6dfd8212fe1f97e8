"""Capacity over time in bounded memory: fine for the last minutes, coarser the further back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

SPANS_S: tuple[tuple[int, int], ...] = ((600, 1), (7_200, 15), (86_400, 180), (604_800, 1_260))
"""(how far back, seconds per row): ten minutes, two hours, a day, a week."""

Row = tuple[int, float, float, float, int]
"""(start in Unix seconds, mean devices useful, in rescale, idle, nodes reclaimed)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Borrowed devices at an instant, and the nodes handed back since the sample before."""

    at_s: float
    useful: int
    rescale: int
    idle: int
    reclaims: int = 0


class Tier:
    """Rows of one resolution. Invariant: at most `span_s / step_s` rows, with growing times."""

    def __init__(self, span_s: int, step_s: int) -> None:
        self.span_s = span_s
        self.step_s = step_s
        self.closed = 0  # rows ever finished; those still kept are the newest
        self._rows: deque[Row] = deque(maxlen=span_s // step_s)
        self._open: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Take a sample. Finishes a row when the sample belongs to a later one; times never go back."""
        if self._open and self._start(sample) > self._start(self._open[0]):
            self._rows.append(self._mean())
            self.closed += 1
            self._open = []
        self._open.append(sample)

    def rows_after(self, closed: int) -> list[Row]:
        """Rows that were finished after the first `closed` ones, as far as they are still kept."""
        missing = min(self.closed - closed, len(self._rows))
        return list(self._rows)[len(self._rows) - missing :]

    def _start(self, sample: Sample) -> int:
        return int(sample.at_s // self.step_s) * self.step_s

    def _mean(self) -> Row:
        n = len(self._open)
        return (
            self._start(self._open[0]),
            round(sum(s.useful for s in self._open) / n, 1),
            round(sum(s.rescale for s in self._open) / n, 1),
            round(sum(s.idle for s in self._open) / n, 1),
            sum(s.reclaims for s in self._open),
        )


Mark = tuple[int, ...]
"""How many rows of each tier a viewer has."""


class History:
    """The same samples in every resolution."""

    def __init__(self, spans_s: Sequence[tuple[int, int]] = SPANS_S) -> None:
        self.tiers = tuple(Tier(span_s, step_s) for span_s, step_s in spans_s)

    def add(self, sample: Sample) -> None:
        """Take a sample, newer than all before."""
        for tier in self.tiers:
            tier.add(sample)

    @property
    def mark(self) -> Mark:
        """What a viewer has who was given everything up to now."""
        return tuple(tier.closed for tier in self.tiers)

    def rows_after(self, mark: Mark | None) -> dict[int, list[Row]]:
        """Rows by span that a viewer with `mark` lacks; all of them for None."""
        marks = mark or (0,) * len(self.tiers)
        rows = {tier.span_s: tier.rows_after(closed) for tier, closed in zip(self.tiers, marks, strict=True)}
        return {span_s: new for span_s, new in rows.items() if new or mark is None}
