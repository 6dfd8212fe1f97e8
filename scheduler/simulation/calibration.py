"""Is the forecast right? Predicted against observed survival of idle nodes, by a forecast that only knew the past."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import numpy as np

from scheduler.planning.forecast import HORIZONS_S, Calibration, IdleHistory
from scheduler.simulation.traces import Trace

EVERY_S = 1800.0
"""How often the forecast is asked."""


def calibrate(trace: Trace, horizons_s: Sequence[float] = HORIZONS_S, every_s: float = EVERY_S) -> list[Calibration]:
    """Ask about every idle node every so often; the forecast has learnt from the intervals that had ended by then."""
    by_end = sorted(trace.intervals, key=attrgetter("end_s"))
    starts = np.array([i.start_s for i in trace.intervals])
    ends = np.array([i.end_s for i in trace.intervals])
    history, learnt = IdleHistory(), 0
    sums = np.zeros((len(horizons_s), 3))
    for at_s in np.arange(trace.intervals[0].start_s + every_s, trace.end_s, every_s):
        while learnt < len(by_end) and by_end[learnt].end_s <= at_s:
            ended = by_end[learnt]
            history.lease_ended(ended.end_s - ended.start_s, ended.end_s, by_owner=True)
            learnt += 1
        live = (starts <= at_s) & (ends > at_s)
        forecast = history.forecast(at_s - starts[live])
        for row, horizon_s in enumerate(horizons_s):
            if at_s + horizon_s <= trace.end_s:  # what happens after the trace is not known
                predicted = forecast.survival(at_s - starts[live], horizon_s)
                sums[row] += predicted.sum(), (ends[live] - at_s > horizon_s).sum(), live.sum()
    return [
        Calibration(horizon_s, predicted / max(asked, 1), observed / max(asked, 1), int(asked))
        for horizon_s, (predicted, observed, asked) in zip(horizons_s, sums.tolist(), strict=True)
    ]
