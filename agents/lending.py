"""The raylet of the present lease: started, watched and ended; a node whose raylets fail is not lent for a while."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from agents import raylet
from agents.decide import AllGone, EndRaylet, Happening, RayletEnded, StartRaylet, ending
from agents.offer import pause_after_failures_s
from agents.raylet import CannotStart, KeptRaylet, RayletOptions

_STABLE_S = 60.0
"""A raylet that ran for so long had not failed to start."""

_GIVING_UP_S = 1.0
_NEWS_S = 0.1


class Lending:
    """At most one raylet. `say_started(epoch, error)` is for the scheduler, `happen` for the lease."""

    def __init__(
        self,
        options: RayletOptions,
        say_started: Callable[[int, str], None],
        happen: Callable[[Happening], None],
    ) -> None:
        self.options = options
        self.is_up = False
        self._say_started, self._happen = say_started, happen
        self._kept: KeptRaylet | None = None
        self._starting: asyncio.Task[None] | None = None
        self._epoch = 0
        self._expected = float("inf")
        self._started_at = 0.0
        self._failures = 0
        self._not_before = 0.0

    @property
    def keeper(self) -> int:
        """Process id of the keeper, 0 without one."""
        return self._kept.keeper if self._kept else 0

    def start(self, action: StartRaylet, ends_at: float | None) -> None:
        """Start a raylet; what comes of it is said and happens later, a failure too."""
        join, devices = action.join, action.devices
        self._epoch, self._started_at = join.epoch, time.monotonic()
        try:
            ray = raylet.find_ray(self.options.ray)
            if problem := raylet.version_problem(ray, join.ray_version):
                raise CannotStart(problem)
            temp = raylet.temp_dir(self.options.folder, join.epoch)
            kept = KeptRaylet(self.options, temp, self._failed, self._gone)
            kept.start(
                raylet.command(self.options, ray, join, len(devices), temp),
                raylet.environment(os.environ, self.options, join, devices),
            )
        except CannotStart as problem:
            asyncio.get_running_loop().call_soon(self._never_was, str(problem))
            return
        self._kept, self._expected = kept, float("inf")
        self.expect_end(ends_at)
        self._starting = asyncio.create_task(self._await_start(kept))

    def end(self, action: EndRaylet) -> None:
        """End it, if there is one."""
        if self._kept:
            self._failures = 0
            self._kept.end(action.term_at, action.kill_at)

    def expect_end(self, end: float | None) -> None:
        """Have the keeper end the raylet when the owner returns for certain, should the agent say nothing more."""
        ends_at = float("inf") if end is None else end
        if self._kept and ends_at != self._expected and abs(ends_at - self._expected) > _NEWS_S:
            self._expected = ends_at
            self._kept.limit(*ending(time.monotonic(), ends_at))

    def problem(self, now_s: float) -> str:
        """Why no raylet should be started now; empty if nothing is known against it."""
        if now_s < self._not_before:
            return f"its raylet failed {self._failures} time(s): see raylet.log in the agent's --dir"
        try:
            raylet.find_ray(self.options.ray)
        except CannotStart as problem:
            return str(problem)
        return ""

    def forgive(self) -> None:
        """Forget failures: somebody has mended what was wrong."""
        self._not_before, self._failures = 0.0, 0

    async def _await_start(self, kept: KeptRaylet) -> None:
        up = await kept.started()
        if self._kept is not kept:
            return
        if up:
            self.is_up = True
            self._say_started(self._epoch, "")
            return
        self._failed(f"the raylet did not start in {self.options.start_limit_s:g} s: {kept.last_words()}")
        now = time.monotonic()
        kept.end(now, now + _GIVING_UP_S)

    def _never_was(self, why: str) -> None:
        self._failed(why)
        self._happen(AllGone(0))

    def _failed(self, why: str) -> None:
        lasted = self.is_up and time.monotonic() - self._started_at > _STABLE_S
        self._failures = 1 if lasted else self._failures + 1
        self._not_before = time.monotonic() + pause_after_failures_s(self._failures)
        if not self.is_up:
            self._say_started(self._epoch, why)
        self._happen(RayletEnded())

    def _gone(self, killed: int) -> None:
        self._kept, self.is_up = None, False
        if self._starting:
            self._starting.cancel()
        self._happen(AllGone(killed))
