"""The service for users, operators and their tools; see protocol/client.proto."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

from protocol import client_pb2 as pb
from protocol.client_pb2_grpc import FallowServiceServicer
from scheduler.clock import Clock
from scheduler.control_loop import ControlLoop
from scheduler.domain.changes import LogRow
from scheduler.domain.events import CancelRequested, DrainRequested, Tick
from scheduler.domain.jobs import Job
from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc import checks, views
from scheduler.rpc.auth import Auth
from scheduler.rpc.causes import Causes
from scheduler.rpc.convert import reason_to_wire
from scheduler.rpc.log_feed import LogFeed
from scheduler.rpc.submits import read_spec, submitted
from scheduler.store.port import Store
from scheduler.store.tokens import Token, TokenRole, Tokens

WHY_EVENTS = 20
"""Log rows that explain a job."""
LONGEST_REQUEST_ID = 200
LAST_EVENTS = 1_000
"""Log rows that a watcher is still shown once its job is over."""


class ClientService(FallowServiceServicer):
    """Everyone who may read sees every job and node; a job is ended by its owner or an admin only."""

    def __init__(
        self, loop: ControlLoop, store: Store, tokens: Tokens, auth: Auth, logs: LogFeed, clock: Clock, causes: Causes
    ) -> None:
        self._loop = loop
        self._store = store
        self._tokens = tokens
        self._auth = auth
        self._logs = logs
        self._clock = clock
        self._causes = causes

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        """Durable when it returns; the same request id gives the same job."""
        if not request.request_id.isprintable() or len(request.request_id) > LONGEST_REQUEST_ID:
            what = f"is not up to {LONGEST_REQUEST_ID} printable characters."
            raise checks.invalid("request_id", what, "Send a UUID, for example.")
        caller = await self._caller(context)
        spec = await asyncio.to_thread(read_spec, request.spec_json)
        event = submitted(
            spec,
            request.spec_json,
            job=self._loop.new_job_id(),
            user=caller.name,
            request_id=request.request_id,
            at_s=self._clock.now_s(),
            cause_id=self._causes.next("submit"),
        )
        job, existed = await self._loop.submit(event)
        return pb.SubmitResponse(job=job, existed=existed)

    async def GetJob(self, request: pb.JobRequest, context: Any) -> pb.Job:
        """One job with everything that belongs to it; its secrets only for its owner and admins."""
        return self._view(self._find(request.job), await self._caller(context))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        """Live jobs, or all, oldest first; without their specs."""
        jobs = sorted(self._loop.inventory.jobs.values(), key=lambda job: (job.submitted_s, job.id))
        shown = (job for job in jobs if request.all or job.state.is_live)
        return pb.ListJobsResponse(jobs=views.job_views(shown, self._loop.inventory, self._loop.unplaced))

    async def WatchJob(self, request: pb.JobRequest, context: Any) -> AsyncIterator[pb.JobEvent]:
        """The job as it is now, then what happens to it, until it has ended."""
        with closing(self._loop.subscribe()) as rows:
            job = self._find(request.job)
            tail = await asyncio.to_thread(self._store.log_tail, 1, job.id)
            shown = tail[-1].sequence if tail else 0
            now = LogRow(shown, self._clock.now_s(), "state", f"The job is {job.state}.", "", job=job.id)
            yield views.event_view(now, self._brief(job.id))
            async for row in self._until_over(job.id, shown, rows):
                yield views.event_view(row, self._brief(job.id))

    async def _until_over(self, job: str, shown: int, rows: AsyncIterator[LogRow]) -> AsyncIterator[LogRow]:
        """The job's log rows after the one numbered `shown`, until it has ended. Raises `Refused` if cut off before."""
        while self._is_live(job):
            row = await anext(rows, None)
            if row is None:
                message = "The events were cut off: this watcher takes them too slowly, or the scheduler is stopping."
                raise Refused(Reason("stream_cut", message, "Watch again: it starts with the job's present state."))
            if row.job == job and row.sequence > shown:
                shown = row.sequence
                yield row
        await self._stored()
        for row in await asyncio.to_thread(self._store.log_after, shown, LAST_EVENTS, job):
            yield row

    async def JobLogs(self, request: pb.LogsRequest, context: Any) -> AsyncIterator[pb.LogRecord]:
        """Lines that the job wrote, oldest first; with follow, until it has ended."""
        tail = checks.count("tail", request.tail)
        job = self._find(request.job).id
        async for line in self._logs.read(job, tail, lambda: request.follow and self._is_live(job)):
            yield pb.LogRecord(at_s=line.at_s, worker=line.worker, line=line.line)

    async def CancelJob(self, request: pb.JobRequest, context: Any) -> pb.Job:
        """The job, which ends in its own time. Only its owner and admins may."""
        caller, job = await self._caller(context), self._find(request.job)
        if not _may_change(job, caller):
            message = f"Job {job.id} belongs to {job.user!r}, not to {caller.name!r}."
            raise Refused(Reason("forbidden", message, "Ask its owner or an admin to cancel it."))
        cause_id = self._causes.next("cancel")
        await self._loop.apply(
            CancelRequested(at_s=self._clock.now_s(), cause_id=cause_id, job=job.id, user=caller.name)
        )
        return self._view(self._find(job.id), caller)

    async def Why(self, request: pb.JobRequest, context: Any) -> pb.WhyResponse:
        """Why the job does not run, or not at its full width, and what happened to it last."""
        job = self._find(request.job)
        rows = await asyncio.to_thread(self._store.log_tail, WHY_EVENTS, job.id)
        return pb.WhyResponse(
            job=self._view(job, await self._caller(context)),
            reasons=[reason_to_wire(reason) for reason in self._reasons(job)],
            events=[views.event_view(row, None) for row in rows],
        )

    # --- nodes and books -------------------------------------------------------------------------------------------

    async def ListNodes(self, request: pb.ListNodesRequest, context: Any) -> pb.ListNodesResponse:
        """Nodes of a site, or all, by name."""
        return pb.ListNodesResponse(nodes=views.node_views(self._loop.inventory, request.site))

    async def Drain(self, request: pb.DrainRequest, context: Any) -> pb.DrainResponse:
        """Has one lent node, or all of a site's, given back within `grace_s`."""
        grace_s = checks.seconds("grace_s", request.grace_s)
        caller, nodes = await self._caller(context), self._to_drain(request)
        cause = checks.text(request.cause) or f"drained by {caller.name}"
        cause_id = self._causes.next("drain")
        for node in nodes:
            await self._loop.apply(
                DrainRequested(at_s=self._clock.now_s(), cause_id=cause_id, node=node, grace_s=grace_s, cause=cause)
            )
        return pb.DrainResponse(nodes=nodes)

    async def Usage(self, request: pb.UsageRequest, context: Any) -> pb.UsageResponse:
        """What became of all borrowed time."""
        return views.usage_view(self._loop.inventory, request.by or "job")

    # --- tokens ----------------------------------------------------------------------------------------------------

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """A new token, shown this once."""
        now_s = self._clock.now_s()
        secret = await asyncio.to_thread(self._tokens.create, request.name, request.role, now_s, request.valid_s)
        return pb.CreateTokenResponse(token=secret)

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:
        """Names and roles of all valid tokens."""
        tokens = await asyncio.to_thread(self._tokens.list, self._clock.now_s())
        return pb.ListTokensResponse(
            tokens=[
                pb.TokenInfo(name=t.name, role=t.role.value, created_s=t.created_s, expires_s=t.expires_s)
                for t in tokens
            ]
        )

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.RevokeTokenResponse:
        """Makes a token useless."""
        await asyncio.to_thread(self._tokens.revoke, request.name, self._clock.now_s())
        return pb.RevokeTokenResponse()

    # ---------------------------------------------------------------------------------------------------------------

    async def _caller(self, context: Any) -> Token:
        return await self._auth.caller(context.invocation_metadata())

    async def _stored(self) -> None:
        """Returns once the log holds everything that the inventory shows now, which may be a turn ahead of it."""
        await self._loop.apply(Tick(at_s=self._clock.now_s(), cause_id="watch"))

    def _find(self, wanted: str) -> Job:
        return views.find_job(self._loop.inventory, wanted)

    def _view(self, job: Job, caller: Token) -> pb.Job:
        return views.job_view(job, self._loop.inventory, self._loop.unplaced, secrets=_may_change(job, caller))

    def _brief(self, job: str) -> pb.Job:
        return views.job_views((self._find(job),), self._loop.inventory, self._loop.unplaced)[0]

    def _is_live(self, job: str) -> bool:
        found = self._loop.inventory.jobs.get(job)
        return found is not None and found.state.is_live

    def _reasons(self, job: Job) -> tuple[Reason, ...]:
        if job.state.is_live:
            waiting = self._loop.unplaced.get(job.id)
            return (waiting,) if waiting else ()
        return (Reason(job.state.value, job.message or f"The job is {job.state}.", ""),)

    def _to_drain(self, request: pb.DrainRequest) -> list[str]:
        if bool(request.node) == bool(request.site):
            raise checks.invalid("node", "give a node or a site, one of the two.", "See `fallow nodes` for names.")
        inventory = self._loop.inventory
        known = [n for n in inventory.nodes.values() if request.node == n.id or request.site == n.site]
        if not known:
            named = (
                f"node: there is no node {request.node!r}." if request.node else f"site: no node of {request.site!r}."
            )
            raise Refused(Reason("not_found", named, "See `fallow nodes` for names."))
        lent = {lease.key.node for lease in inventory.leases.values() if lease.is_live}
        nodes = sorted(node.id for node in known if node.id in lent)
        if request.node and not nodes:
            message = f"node: {request.node!r} is not lent, so there is nothing to drain."
            raise Refused(Reason("not_lent", message, "See `fallow nodes` for nodes that are."))
        return nodes


def _may_change(job: Job, caller: Token) -> bool:
    return caller.role is TokenRole.ADMIN or caller.name == job.user
