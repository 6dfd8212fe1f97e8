"""A scheduler of a few lines behind a real gRPC port: it remembers what it was asked and answers from a script."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc

from protocol import client_pb2 as pb
from protocol import client_pb2_grpc, common_pb2
from protocol.metadata import REASON_KEY, TOKEN_KEY


def job(state: str = "running", **fields: Any) -> pb.Job:
    """A job as the scheduler would send it."""
    defaults: dict[str, Any] = {"id": "job-1", "name": "poem", "kind": "train", "state": state, "user": "ada"}
    sizes = {"width": 3, "min_width": 2, "max_width": 4, "step": 7, "total": 10, "submitted_s": time.time() - 90}
    return pb.Job(**(defaults | sizes | fields))


class FakeScheduler(client_pb2_grpc.FallowServiceServicer):
    """`failures` are status codes to answer the next submits with; `refusal` refuses everything."""

    def __init__(self) -> None:
        self.submits: list[pb.SubmitRequest] = []
        self.tokens_seen: list[str] = []
        self.failures: list[grpc.StatusCode] = []
        self.refusal: common_pb2.Reason | None = None
        self.watches: list[list[pb.JobEvent]] = []
        self.final = job("done")

    def _enter(self, context: grpc.ServicerContext) -> None:
        self.tokens_seen.append(dict(context.invocation_metadata()).get(TOKEN_KEY, ""))
        if self.refusal is not None:
            context.set_trailing_metadata(((REASON_KEY, self.refusal.SerializeToString()),))
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{self.refusal.message} {self.refusal.remedy}")

    def Submit(self, request, context):  # noqa: N802
        self._enter(context)
        self.submits.append(request)
        if self.failures:
            context.abort(self.failures.pop(0), "not now")
        known = [s for s in self.submits[:-1] if s.request_id == request.request_id]
        return pb.SubmitResponse(job="job-1", existed=bool(known))

    def GetJob(self, request, context):  # noqa: N802
        self._enter(context)
        return self.final

    def ListJobs(self, request, context):  # noqa: N802
        self._enter(context)
        waiting = common_pb2.Reason(code="no_capacity", message="2 nodes are lent, 4 needed.", remedy="Lend more.")
        return pb.ListJobsResponse(jobs=[job(), job("queued", id="job-2", name="novel", waiting=waiting)])

    def WatchJob(self, request, context) -> Iterator[pb.JobEvent]:  # noqa: N802
        self._enter(context)
        yield from self.watches.pop(0) if self.watches else ()
        if self.watches:
            context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    def JobLogs(self, request, context) -> Iterator[pb.LogRecord]:  # noqa: N802
        self._enter(context)
        yield pb.LogRecord(at_s=1.0, worker="w1", line="hello")

    def CancelJob(self, request, context):  # noqa: N802
        self._enter(context)
        return job("cancelled")

    def ListNodes(self, request, context):  # noqa: N802
        self._enter(context)
        device = common_pb2.Device(id="cpu:0", kind="cpu", model="4 cores", cores=4)
        return pb.ListNodesResponse(
            nodes=[pb.Node(id="n1", site="local", state="lent", devices=[device], spare_devices=["cpu:0"])]
        )

    def Drain(self, request, context):  # noqa: N802
        self._enter(context)
        return pb.DrainResponse(nodes=[request.node])

    def Why(self, request, context):  # noqa: N802
        self._enter(context)
        reason = common_pb2.Reason(code="no_capacity", message="No node is lent.", remedy="Lend one.")
        return pb.WhyResponse(job=job("queued"), reasons=[reason], events=[event(1)])

    def Usage(self, request, context):  # noqa: N802
        self._enter(context)
        seconds = pb.DeviceSeconds(borrowed=10, useful=7, rescale=1, idle=1, lost=1)
        return pb.UsageResponse(rows=[pb.UsageRow(key="job-1", device_seconds=seconds)], total=seconds)

    def CreateToken(self, request, context):  # noqa: N802
        self._enter(context)
        return pb.CreateTokenResponse(token=f"fallow-{request.role}-secret")

    def ListTokens(self, request, context):  # noqa: N802
        self._enter(context)
        return pb.ListTokensResponse(tokens=[pb.TokenInfo(name="ada", role="user", created_s=1.0)])

    def RevokeToken(self, request, context):  # noqa: N802
        self._enter(context)
        return pb.RevokeTokenResponse()


def event(sequence: int, state: str = "running") -> pb.JobEvent:
    """An event of the job."""
    return pb.JobEvent(sequence=sequence, at_s=1.0, kind="job_progressed", message=f"event {sequence}", job=job(state))


def serve(fake: FakeScheduler) -> tuple[grpc.Server, str]:
    """A server with the fake behind it, and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    client_pb2_grpc.add_FallowServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"
