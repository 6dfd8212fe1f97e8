"""The site process: carries out the scheduler's commands on the site's Ray cluster and says what happened.

It can die at any instant: the Ray head and every actor go on without it, and the next one finds them again.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from protocol import site_pb2
from protocol.jobspec import InvalidSpec
from runtime.site import nodes as ray_nodes
from runtime.site import ray_actors, ray_driver
from runtime.site.controller import Actors, JobController, LeaseKey, Reports
from runtime.site.head import Head
from runtime.site.hosted_job import HostedJob
from runtime.site.job_store import JobStore
from runtime.site.nodes import Nodes
from runtime.site.outbox import Outbox
from runtime.site.reports import SiteReports
from runtime.site.session import Peer, Session
from runtime.site.wire import assignment_from_wire, lease_from_wire, lease_to_wire

log = logging.getLogger(__name__)

HEAD_CHECK_S = 0.5
DETACH_LIMIT_S = 5.0
"""Longest wait for controllers to let go: with a dead Ray head some of their calls never return."""

CONTROLLERS = {
    "train": ("runtime.training.controller", "TrainController"),
    "serve": ("runtime.serving.controller", "ServeController"),
    "task": ("runtime.tasks.controller", "TaskController"),
}
Factory = Callable[[str, str, Actors, Reports, Path], JobController]
"""Makes the controller of (kind, job, actors, reports, folder)."""


class HeadDied(Exception):
    """The Ray head is gone, and with it every raylet's cluster: this process must begin anew."""


def make_controller(kind: str, job: str, actors: Actors, reports: Reports, folder: Path) -> JobController:
    """The controller of a job of this kind; its module, and what that needs, is imported only now."""
    module, name = CONTROLLERS[kind]
    controller: JobController = getattr(importlib.import_module(module), name)(job, actors, reports, folder)
    return controller


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What a site process was told on its command line."""

    name: str
    folder: Path
    instance: str  # of the folder: a restarted site takes its old session's place
    peer: Peer


class Site:
    """Jobs, nodes and the session of one site, whose Ray head runs."""

    def __init__(self, settings: SiteSettings, head: Head, factory: Factory = make_controller) -> None:
        self._settings = settings
        self._head = head
        self._factory = factory
        self._store = JobStore(settings.folder)
        self._outbox = Outbox()
        self._reports = SiteReports(self._outbox.put, self._job_ended)
        self._nodes = Nodes(ray_nodes.live_labels, self._node_ready, self._node_gone)
        self._jobs: dict[str, HostedJob] = {}
        self._actors: Actors | None = None
        self._commands: asyncio.Queue[site_pb2.SiteCommand] = asyncio.Queue()
        self._session = Session(settings.peer, self._hello(), self._outbox, self._commands.put_nowait)

    async def run(self, head_is_alive: Callable[[], bool], on_ready: Callable[[], None]) -> None:
        """Work until cancelled. Raises `SessionRefused`, `HeadDied`, or ConnectionError if Ray lets nobody in."""
        try:
            async with asyncio.TaskGroup() as tasks:
                # First the session: agents can start their raylets while this process joins the cluster.
                tasks.create_task(self._session.run())
                tasks.create_task(self._watch_head(head_is_alive))
                await self._join_cluster()
                tasks.create_task(self._nodes.run())
                tasks.create_task(self._obey())
                await self._session.opened.wait()
                on_ready()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await self._detach()

    async def _detach(self) -> None:
        letting_go = [asyncio.create_task(job.detach()) for job in self._jobs.values()]
        if letting_go:
            await asyncio.wait(letting_go, timeout=DETACH_LIMIT_S)

    async def _join_cluster(self) -> None:
        await asyncio.to_thread(ray_driver.connect, self._head)
        self._actors = ray_actors.RayActors(self._nodes.ray_node, await asyncio.to_thread(ray_actors.head_node))
        await self._nodes.refresh()
        self._take_up()

    def _take_up(self) -> None:
        """Go on with what an earlier process of this site left."""
        for ended in self._store.ended():
            self._outbox.put(site_pb2.SiteMessage(ended=ended))
        for assignment in self._store.all():
            log.info("taking up job %s again at revision %d", assignment.job, assignment.revision)
            self._assign(assignment)
        for lease in sorted({lease_from_wire(slot.lease) for kept in self._store.all() for slot in kept.workers}):
            if not self._nodes.has(lease):
                self._node_gone(lease)  # while no site process was there to see it

    async def _watch_head(self, is_alive: Callable[[], bool]) -> None:
        # An earlier process of this site may have started it: then it is not ours to wait for.
        while is_alive():  # noqa: ASYNC110
            await asyncio.sleep(HEAD_CHECK_S)
        raise HeadDied(f"the Ray head (process {self._head.pid}) died")

    def _hello(self) -> site_pb2.SiteHello:
        return site_pb2.SiteHello(
            site=self._settings.name,
            instance=self._settings.instance,
            version=metadata.version("fallow"),
            ray_address=self._head.address,
            ray_token=self._head.token,
            ray_version=self._head.ray_version,
        )

    # --- commands --------------------------------------------------------------------------------------------

    async def _obey(self) -> None:
        while True:
            self._carry_out(await self._commands.get())

    def _carry_out(self, command: site_pb2.SiteCommand) -> None:
        body = command.WhichOneof("body")
        if body == "assign":
            self._assign(command.assign)
        elif body == "end":
            self._end(command.end.job, command.end.cause)
        elif body == "forget":
            self._nodes.forget(lease_from_wire(command.forget.lease))

    def _assign(self, message: site_pb2.Assignment) -> None:
        hosted = self._jobs.get(message.job)
        if self._store.has_ended(message.job) or (hosted and message.revision <= hosted.revision):
            return
        try:
            assignment = assignment_from_wire(message)
            hosted = hosted or self._host(message.job, assignment.spec.kind)
            self._store.keep(message)
        except (InvalidSpec, OSError, ImportError) as error:
            self._refuse(message, error)
            return
        hosted.assign(assignment)

    def _host(self, job: str, kind: str) -> HostedJob:
        assert self._actors is not None
        folder = self._settings.folder / "jobs" / job
        folder.mkdir(parents=True, exist_ok=True)
        controller = self._factory(kind, job, self._actors, self._reports, folder)
        self._jobs[job] = HostedJob(job, controller, self._reports)
        return self._jobs[job]

    def _refuse(self, message: site_pb2.Assignment, error: Exception) -> None:
        log.error("job %s, revision %d cannot be taken up: %s", message.job, message.revision, error)
        refused = site_pb2.AssignmentRefused(job=message.job, revision=message.revision)
        refused.reason.code = "site_error"
        refused.reason.message = f"Site {self._settings.name} cannot take it up: {error}"
        refused.reason.remedy = "See the site's log; a full disk or an older version of Fallow there are usual causes."
        self._outbox.put(site_pb2.SiteMessage(refused=refused))

    def _end(self, job: str, cause: str) -> None:
        hosted = self._jobs.get(job)
        if hosted:
            hosted.end(cause)
        elif not self._store.has_ended(job):
            self._reports.ended(job, "cancelled", f"{cause}: it did not run at site {self._settings.name}")

    # --- what happened ---------------------------------------------------------------------------------------

    def _job_ended(self, ended: site_pb2.JobEnded) -> None:
        hosted = self._jobs.pop(ended.job, None)
        if hosted:
            hosted.finish()
        try:
            self._store.end(ended)
        except OSError as error:  # only a crash of this process within the next moments would miss it
            log.error("the end of job %s could not be kept: %s", ended.job, error)

    def _node_ready(self, lease: LeaseKey, ray_node: str) -> None:
        ready = site_pb2.NodeReady(lease=lease_to_wire(lease), ray_node=ray_node)
        self._outbox.put(site_pb2.SiteMessage(node_ready=ready))

    def _node_gone(self, lease: LeaseKey) -> None:
        self._outbox.put(site_pb2.SiteMessage(node_gone=site_pb2.NodeGone(lease=lease_to_wire(lease))))
        for hosted in self._jobs.values():
            hosted.node_gone(lease)
