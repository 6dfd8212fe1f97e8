"""Times between machines whose clocks differ: every message says when it was sent, by its sender's clock."""

from __future__ import annotations

from collections import deque

_HEARD = 16
"""Messages remembered: enough that one of them came quickly, few enough to follow a clock that is set."""


class PeerClock:
    """The Unix clock of a peer, as its messages show it.

    A message shows the difference of the two clocks and its own way's time together; the least of the last few is
    closest to the difference alone.
    """

    def __init__(self) -> None:
        self._behind_s: deque[float] = deque(maxlen=_HEARD)

    def hear(self, sent_s: float, received_s: float) -> None:
        """A message that says it was sent at `sent_s`, by the peer's clock; 0 from one that does not say."""
        if sent_s > 0:
            self._behind_s.append(received_s - sent_s)

    @property
    def behind_s(self) -> float:
        """How much later it is here than there, in seconds; 0 while nothing was heard."""
        return min(self._behind_s, default=0.0)

    def here(self, time_s: float) -> float:
        """A Unix time of the peer's clock, by ours."""
        return time_s + self.behind_s
