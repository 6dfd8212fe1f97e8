"""A node that is ours until its owner says otherwise."""

from __future__ import annotations

from agents.spare import Judgement, Now


class Always:
    """Everything is spare; only the owner's word ends it."""

    name = "always"

    def __init__(self, devices: tuple[str, ...]) -> None:
        self.devices = devices

    async def judge(self, now: Now) -> Judgement:
        """All devices."""
        return Judgement(self.devices, self.name, "lent until its owner reclaims it")
