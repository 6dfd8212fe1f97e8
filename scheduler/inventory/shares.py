"""How much each user has had of late, so that the others get their share."""

from __future__ import annotations

from collections.abc import Mapping

from scheduler.domain.plan import Usage

HALF_LIFE_S = 2 * 86_400.0
"""What was used so long ago counts half."""


class Shares:
    """Device-seconds by user, fading. After a restart all that was ever used counts, and fades from then on."""

    def __init__(self) -> None:
        self._counted_us: dict[str, int] = {}
        self._faded_s: dict[str, float] = {}
        self._at_s: float | None = None

    def note(self, used_us: Mapping[str, int], now_s: float) -> None:
        """What the books say that each user has used in all."""
        kept = 1.0 if self._at_s is None else 0.5 ** (max(0.0, now_s - self._at_s) / HALF_LIFE_S)
        for user in sorted(used_us):
            newly_s = (used_us[user] - self._counted_us.get(user, 0)) / 1e6
            self._faded_s[user] = self._faded_s.get(user, 0.0) * kept + newly_s
        self._counted_us = dict(used_us)
        self._at_s = now_s

    def usages(self) -> tuple[Usage, ...]:
        """Sorted by user."""
        return tuple(Usage(user, faded_s) for user, faded_s in sorted(self._faded_s.items()))
