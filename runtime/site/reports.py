"""What controllers say, turned into messages to the scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol import common_pb2, site_pb2
from runtime.site.controller import Assignment, WorkerSlot
from runtime.site.wire import lease_to_wire

MAX_LINE = 4000
"""Characters of a log line that travel."""

MAX_LINES = 500
"""Lines of one log message; the newest are kept."""


class SiteReports:
    """Implements `runtime.site.controller.Reports`. `job_ended` is told of an ending before it is said."""

    def __init__(
        self, say: Callable[[site_pb2.SiteMessage], None], job_ended: Callable[[site_pb2.JobEnded], None]
    ) -> None:
        self._say = say
        self._job_ended = job_ended

    def reached(
        self, assignment: Assignment, stall_s: float, bytes_moved: int = 0, at_step: int = 0, cause: str = ""
    ) -> None:
        """See `Reports.reached`."""
        message = site_pb2.AssignmentReached(
            job=assignment.job,
            revision=assignment.revision,
            width=len(assignment.workers),
            cause=cause or assignment.cause,
            stall_s=stall_s,
            bytes_moved=bytes_moved,
            at_step=at_step,
        )
        self._say(site_pb2.SiteMessage(reached=message))

    def refused(self, assignment: Assignment, code: str, message: str, remedy: str) -> None:
        """See `Reports.refused`."""
        reason = common_pb2.Reason(code=code, message=message, remedy=remedy)
        refused = site_pb2.AssignmentRefused(job=assignment.job, revision=assignment.revision, reason=reason)
        self._say(site_pb2.SiteMessage(refused=refused))

    def worker(self, job: str, slot: WorkerSlot, state: str, detail: str = "") -> None:
        """See `Reports.worker`."""
        message = site_pb2.WorkerChanged(
            job=job, worker=slot.worker, lease=lease_to_wire(slot.lease), state=state, detail=detail[:MAX_LINE]
        )
        self._say(site_pb2.SiteMessage(worker=message))

    def progress(
        self,
        job: str,
        step: int,
        total: int,
        rate: float,
        rate_unit: str,
        width: int,
        loss: float = 0.0,
        metrics: dict[str, float] | None = None,
        wanted: Mapping[str, int] | None = None,
    ) -> None:
        """See `Reports.progress`."""
        message = site_pb2.JobProgress(
            job=job,
            step=step,
            total=total,
            loss=loss,
            rate=rate,
            rate_unit=rate_unit,
            width=width,
            metrics=metrics,
            wanted=wanted,
        )
        self._say(site_pb2.SiteMessage(progress=message))

    def expert_loads(self, job: str, tokens: list[int]) -> None:
        """See `Reports.expert_loads`."""
        self._say(site_pb2.SiteMessage(expert_loads=site_pb2.ExpertLoads(job=job, tokens=tokens)))

    def work_lost(self, job: str, steps: int, seconds: float, cause: str) -> None:
        """See `Reports.work_lost`."""
        message = site_pb2.WorkLost(job=job, steps=steps, seconds=seconds, cause=cause)
        self._say(site_pb2.SiteMessage(work_lost=message))

    def ended(self, job: str, outcome: str, message: str = "", output: str = "") -> None:
        """See `Reports.ended`."""
        ended = site_pb2.JobEnded(job=job, outcome=outcome, message=message, output=output)
        self._job_ended(ended)
        self._say(site_pb2.SiteMessage(ended=ended))

    def endpoint(self, job: str, url: str) -> None:
        """See `Reports.endpoint`."""
        self._say(site_pb2.SiteMessage(endpoint=site_pb2.JobEndpoint(job=job, url=url)))

    def log(self, job: str, worker: str, lines: list[str]) -> None:
        """See `Reports.log`."""
        short = [line[:MAX_LINE] for line in lines[-MAX_LINES:]]
        self._say(site_pb2.SiteMessage(log=site_pb2.LogLines(job=job, worker=worker, lines=short)))
