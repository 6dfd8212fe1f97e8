"""When to look at the batch system: soon while its queue changes, seldom while it is quiet or silent."""

from __future__ import annotations

from dataclasses import dataclass, replace

_SLOWER = 1.5
_AFTER_SILENCE = 2.0


@dataclass(frozen=True, slots=True)
class Pace:
    """`next_s` is when to look next, `pause_s` how long the last pause was."""

    quick_s: float
    quiet_s: float
    patience_s: float
    pause_s: float = 0.0
    next_s: float = 0.0

    def changed(self, now_s: float) -> Pace:
        """Something happened: look again soon."""
        return self._after(self.quick_s, now_s)

    def hurried(self, now_s: float) -> Pace:
        """There is a sign of change: do not wait out a long pause."""
        looked_s = self.next_s - self.pause_s
        return replace(self, next_s=max(now_s, min(self.next_s, looked_s + self.quick_s)))

    def quiet(self, now_s: float) -> Pace:
        """Nothing happened: take longer."""
        return self._after(min(self.quiet_s, max(self.quick_s, self.pause_s * _SLOWER)), now_s)

    def silent(self, now_s: float) -> Pace:
        """There was no answer, or only a no."""
        return self._after(min(self.patience_s, max(self.quick_s, self.pause_s * _AFTER_SILENCE)), now_s)

    def _after(self, pause_s: float, now_s: float) -> Pace:
        return replace(self, pause_s=pause_s, next_s=now_s + pause_s)
