"""Ids of stimuli: every event names what it came from, so that "why did this happen" is a query."""

from __future__ import annotations

import itertools
import secrets


class Causes:
    """Ids that no other run of the scheduler gives: `submit-1f9c3a-12`."""

    def __init__(self) -> None:
        self._run = secrets.token_hex(3)
        self._numbers = itertools.count(1)

    def next(self, source: str) -> str:
        """An id for one stimulus from `source` ("submit", "agent:n1", ...)."""
        return f"{source}-{self._run}-{next(self._numbers)}"
