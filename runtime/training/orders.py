"""The newest switch that a worker was ordered to: written by control calls, read by the training thread."""

from __future__ import annotations

import threading

from runtime.training.generation import Switch


class Orders:
    """Thread-safe. A newer switch replaces an older one; the same one again changes nothing."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._newest: Switch | None = None
        self._cancelled = 0  # switches up to this number are called off

    def give(self, switch: Switch) -> None:
        """Order a switch."""
        with self._changed:
            if switch.number > self.pending:
                self._newest = switch
                self._changed.notify_all()

    def cancel(self, number: int) -> None:
        """Call off switches up to `number`: whoever waits for their participants, or trains with them, stops."""
        with self._changed:
            self._cancelled = max(self._cancelled, number)

    def is_cancelled(self, number: int) -> bool:
        """Whether that switch was called off."""
        return number <= self._cancelled

    def is_over(self, number: int) -> bool:
        """Whether there is no sense in waiting for that switch: it was called off, or a newer one took its place."""
        return self.is_cancelled(number) or number < self.pending

    @property
    def pending(self) -> int:
        """Number of the newest switch, 0 before the first."""
        return self._newest.number if self._newest else 0

    @property
    def newest(self) -> Switch | None:
        """The newest switch."""
        return self._newest

    def take(self, after: int) -> Switch:
        """Wait for a switch with a greater number than `after`."""
        with self._changed:
            while self._newest is None or self._newest.number <= after:
                self._changed.wait()
            return self._newest
