"""Records of when real machines stood idle, in four formats, read into one."""

from scheduler.simulation.traces.intervals import BadTrace, IdleInterval, Trace
from scheduler.simulation.traces.reading import read_trace

__all__ = ["BadTrace", "IdleInterval", "Trace", "read_trace"]
