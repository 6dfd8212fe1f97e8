"""How many engines a served model could use, by what its clients ask for. Who gets nodes for them the planner decides.

An engine is asked for as soon as the others are nearly full, and is not given up until it was not needed for a while:
to load one takes seconds, and requests come in bursts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from protocol.jobspec import ServePart
from runtime.site.controller import Reports

FULL = 0.75
"""Share of an engine's places, or of the tokens per second that it can give, above which another one helps."""

MEAN_S = 3.0
"""What is asked for is judged by the mean over so long."""

HOLD_S = 60.0
"""What was needed counts for so long."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a model's clients ask of it at one time."""

    at_s: float
    sequences: float  # that run or wait
    waiting: float
    tokens_per_s: float
    engines: float  # that answer


class Demand:
    """Reads no clock: what it is told is in the order of time."""

    def __init__(self, serve: ServePart, now_s: float) -> None:
        self._serve = serve
        self._loads: deque[Load] = deque()
        self._needed: deque[tuple[float, int]] = deque()  # (when, engines)
        self._asked_s = now_s  # when anybody last asked for anything, or could not have been answered
        self._asleep = False
        self._most = 0.0  # tokens per second that one engine gave while others waited for it

    def note(self, load: Load) -> None:
        """Take in how it is now."""
        self._loads.append(load)
        while self._loads[0].at_s < load.at_s - MEAN_S:
            self._loads.popleft()
        if load.sequences or load.tokens_per_s or not (load.engines or self._asleep):
            self._asked_s = load.at_s
        self._asleep = self._serve.idle_s is not None and load.at_s - self._asked_s >= self._serve.idle_s
        if load.waiting and load.engines:
            self._most = max(self._most, load.tokens_per_s / load.engines)
        self._needed.append((load.at_s, self._engines_for(self._loads)))
        while self._needed[0][0] < load.at_s - HOLD_S:
            self._needed.popleft()

    def wanted(self) -> dict[str, int]:
        """Engines that it could use now, within the spec's bounds; 0 if it can do without any worker."""
        serve = self._serve
        if not self._needed:
            return {"engine": serve.engines.min}
        if self._asleep:
            return {"engine": 0}
        most = max(engines for _, engines in self._needed)
        return {"engine": min(serve.engines.max, max(serve.engines.min, most))}

    def _engines_for(self, loads: deque[Load]) -> int:
        by_queue = fmean(load.sequences for load in loads) / (FULL * self._serve.max_batch)
        by_tokens = fmean(load.tokens_per_s for load in loads) / (FULL * self._most) if self._most else 0.0
        return math.ceil(max(by_queue, by_tokens))


def report_progress(
    job: str,
    counts: Mapping[str, float],
    tokens_per_s: float,
    width: int,
    demand: Demand,
    reports: Reports,
    now_s: float,
) -> None:
    """Say how many tokens the model has given, how fast, and how many engines it could use."""
    sequences = counts["running"] + counts["waiting"]
    demand.note(Load(now_s, sequences, counts["waiting"], tokens_per_s, counts["engines"]))
    reports.progress(
        job,
        step=int(counts["tokens"]),
        total=0,
        rate=tokens_per_s,
        rate_unit="tokens/s",
        width=width,
        metrics={**counts, "tokens_per_s": tokens_per_s},
        wanted=demand.wanted(),
    )
