"""Inside a batch job: the node is ours while the job runs, and its end is known."""

from __future__ import annotations

from collections.abc import Mapping

from agents.spare import Judgement, Now

_JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "FALLOW_PILOT")
_END_VARIABLES = ("SLURM_JOB_END_TIME", "FALLOW_END_TIME")


class Pilot:
    """Everything is spare from the start of the batch job until `safety_s` before its end.

    The end is read once, against the clock of then: a wall clock that jumps later does not move it.
    """

    name = "pilot"

    def __init__(
        self, devices: tuple[str, ...], environment: Mapping[str, str], started: Now, safety_s: float = 5.0
    ) -> None:
        self.devices = devices
        self.job = next((f"{name}={environment[name]}" for name in _JOB_VARIABLES if environment.get(name)), "")
        self.ends_at, self.problem = _end(environment, started, safety_s)

    async def judge(self, now: Now) -> Judgement:
        """All devices until the end."""
        if not self.job:
            return self._none("not inside a batch job: start the agent from one, or set FALLOW_PILOT to a name for it")
        if self.problem:
            return self._none(self.problem)
        if self.ends_at is not None and now.mono_s >= self.ends_at:
            return self._none(f"the batch job {self.job} ends")
        return Judgement(self.devices, self.name, f"inside batch job {self.job}", self.ends_at)

    def _none(self, reason: str) -> Judgement:
        return Judgement((), self.name, reason)


def _end(environment: Mapping[str, str], started: Now, safety_s: float) -> tuple[float | None, str]:
    name = next((n for n in _END_VARIABLES if environment.get(n)), "")
    if not name:
        return None, ""
    try:
        return started.mono_s + float(environment[name]) - started.unix_s - safety_s, ""
    except ValueError:
        return None, f"{name} is {environment[name]!r}, not a Unix time: correct it"
