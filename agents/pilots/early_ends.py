"""Pilots that ended before their agents had reached the scheduler: one is chance, several in a row are a fault.

Such as a Python that the nodes do not have. Without this, each would be followed by another within seconds, day and
night.
"""

from __future__ import annotations

from collections.abc import Collection

from agents.batch import Machine, PilotState

TOO_MANY = 3


class EarlyEnds:
    """Counts them from one look at the machine to the next. `in_a_row` starts anew with each agent that comes."""

    def __init__(self) -> None:
        self.in_a_row = 0
        self._submitted = 0  # since the last look
        self._awaited: set[str] = set()
        self._came: set[str] = set()

    @property
    def too_many(self) -> bool:
        """Whether only one pilot at a time is to be tried."""
        return self.in_a_row >= TOO_MANY

    def look(self, machine: Machine, present: Collection[str]) -> None:
        """One look. `present` are nodes (their short names) whose agents are with the scheduler."""
        live = {pilot.id for pilot in machine.pilots if pilot.state is not PilotState.ENDING}
        here = {pilot.id for pilot in machine.in_state(PilotState.RUNNING) if pilot.short_node in present}
        never_seen = max(0, self._submitted - len(live - self._awaited - self._came))
        ended = len(self._awaited - live) + never_seen
        self.in_a_row = 0 if here - self._came else self.in_a_row + ended
        self._submitted = 0
        self._came = (self._came | here) & live
        self._awaited = live - self._came

    def submitted(self, count: int) -> None:
        """The next look should show so many more; what it does not show has ended already."""
        self._submitted += count

    def withdrawn(self, pilots: Collection[str]) -> None:
        """These end because we say so."""
        self._awaited -= set(pilots)

    def on_trial(self) -> bool:
        """Whether a pilot waits or runs whose agent has not come yet."""
        return bool(self._awaited)
