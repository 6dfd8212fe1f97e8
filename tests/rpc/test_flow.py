"""From a node's report to a running job and back to the owner, over the wire."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from protocol import agent_pb2, client_pb2, common_pb2, site_pb2
from tests.rpc.service import TASK, FakeAgent, FakeSite, Service, reason_of

AgentMessage, SiteMessage = agent_pb2.AgentMessage, site_pb2.SiteMessage


async def lend_ready_node(service: Service, site: FakeSite, node: str = "n1") -> tuple[FakeAgent, Any]:
    """A node whose raylet is up, and its lease."""
    agent = await FakeAgent.connect(service, node, instance=f"agent-of-{node}")
    epoch = await agent.lend()
    join = await agent.hear("join")
    assert (join.epoch, join.ray_address, join.ray_token) == (epoch, "127.0.0.1:6379", "secret")
    await agent.say(AgentMessage(raylet_started=agent_pb2.RayletStarted(epoch=epoch)))
    lease = common_pb2.LeaseRef(node=node, epoch=epoch)
    await site.say(SiteMessage(node_ready=site_pb2.NodeReady(lease=lease)))
    return agent, lease


async def run_as_assigned(site: FakeSite, assignment: Any) -> None:
    """Say that all workers of an assignment run."""
    for worker in assignment.workers:
        changed = site_pb2.WorkerChanged(job=assignment.job, worker=worker.worker, lease=worker.lease, state="running")
        await site.say(SiteMessage(worker=changed))
    reached = site_pb2.AssignmentReached(
        job=assignment.job,
        revision=assignment.revision,
        width=len(assignment.workers),
        cause=assignment.cause,
        stall_s=0.25,
    )
    await site.say(SiteMessage(reached=reached))


async def running_job(service: Service, site: FakeSite) -> Any:
    """Submit the task job and run it; its first assignment."""
    await service.submit()
    assignment = await site.hear("assign")
    await run_as_assigned(site, assignment)
    return assignment


async def test_a_node_is_lent_works_and_goes_back_to_its_owner(service: Service) -> None:
    site = await FakeSite.connect(service)
    agent, lease = await lend_ready_node(service, site)
    assignment = await running_job(service, site)
    job = assignment.job
    (worker,) = assignment.workers
    assert (worker.role, worker.lease, list(worker.devices)) == ("runner", lease, ["cpu:0"])
    assert worker.address == "127.0.0.1"
    progress = site_pb2.JobProgress(job=job, step=3, total=10, rate=2.5, rate_unit="items/s", width=1, metrics={"q": 1})
    await site.say(SiteMessage(progress=progress))

    async def progressed() -> Any:
        shown = await service.job(job)
        return shown if shown.step == 3 else None

    shown = await service.until(progressed)
    assert (shown.state, shown.width, shown.total, shown.rate, shown.user) == ("running", 1, 10, 2.5, "user")
    assert [rescale.stall_s for rescale in shown.rescales] == [0.25]
    assert dict(shown.metrics) == {"q": 1.0}

    slow = site_pb2.WorkerChanged(job=job, worker=worker.worker, lease=lease, state="slow", detail="works at 0.4")
    await site.say(SiteMessage(worker=slow))

    async def heard_of_it() -> Any:
        return [row for row in service.store.log_tail(50, job) if row.kind == "worker_slow"]

    (row,) = await service.until(heard_of_it)
    assert (row.job, row.node, row.message) == (job, "n1", f"{worker.worker} on n1/{lease.epoch} works at 0.4")

    notice = agent_pb2.ReclaimNotice(epoch=lease.epoch, deadline_s=service.loop.now_s() + 30, grace_s=30, cause="owner")
    await agent.say(AgentMessage(reclaim=notice))
    parked = await site.hear("assign")
    assert (len(parked.workers), parked.revision) == (0, assignment.revision + 1)
    await site.say(SiteMessage(worker=site_pb2.WorkerChanged(job=job, worker=worker.worker, lease=lease, state="left")))
    await site.say(SiteMessage(reached=site_pb2.AssignmentReached(job=job, revision=parked.revision, cause="reclaim")))
    assert (await agent.hear("leave")).epoch == lease.epoch
    await agent.say(AgentMessage(left=agent_pb2.NodeLeft(epoch=lease.epoch, cause="reclaimed", free_s=1.5)))
    assert (await site.hear("forget")).lease == lease
    (node,) = (await service.call("ListNodes", client_pb2.ListNodesRequest())).nodes
    assert (node.state, node.HasField("lease"), [r.free_s for r in node.reclaims]) == ("busy", False, [1.5])
    assert node.device_seconds.borrowed > 0
    why = await service.call("Why", client_pb2.JobRequest(job=job))
    assert why.job.state == "parked"
    assert [reason.code for reason in why.reasons] == [why.job.waiting.code]
    assert all(event.caused_by for event in why.events)


async def test_the_books_balance_by_every_key(service: Service) -> None:
    site = await FakeSite.connect(service)
    await lend_ready_node(service, site)
    assignment = await running_job(service, site)

    async def booked() -> Any:
        usage = await service.call("Usage", client_pb2.UsageRequest(by="job"))
        return usage if any(row.key == assignment.job for row in usage.rows) else None

    await service.until(booked)
    for by in ("job", "node", "site", "user"):
        usage = await service.call("Usage", client_pb2.UsageRequest(by=by))
        for line in (*(row.device_seconds for row in usage.rows), usage.total):
            assert abs(line.borrowed - (line.useful + line.rescale + line.idle + line.lost)) < 1e-6
        assert abs(sum(row.device_seconds.borrowed for row in usage.rows) - usage.total.borrowed) < 1e-6


async def test_a_watch_starts_with_the_present_and_ends_with_the_job(service: Service) -> None:
    site = await FakeSite.connect(service)
    await lend_ready_node(service, site)
    assignment = await running_job(service, site)
    watch = service.client.WatchJob(client_pb2.JobRequest(job="echo"), metadata=service.metadata("viewer"), timeout=60)
    first = await anext(aiter(watch))
    assert (first.kind, first.job.id) == ("state", assignment.job)
    await site.say(SiteMessage(ended=site_pb2.JobEnded(job=assignment.job, outcome="done", output="out")))
    events = [event async for event in watch]
    assert (events[-1].kind, events[-1].job.state) == ("job_ended", "done")
    assert events[-1].job.output == "out"
    assert [event.sequence for event in events] == sorted(event.sequence for event in events)
    assert await watch.code() is grpc.StatusCode.OK
    again = service.client.WatchJob(client_pb2.JobRequest(job=assignment.job), metadata=service.metadata("viewer"))
    assert [event.kind async for event in again] == ["state"]


async def test_logs_are_followed_to_the_end_of_the_job(service: Service) -> None:
    site = await FakeSite.connect(service)
    await lend_ready_node(service, site)
    assignment = await running_job(service, site)
    follow = service.client.JobLogs(
        client_pb2.LogsRequest(job=assignment.job, follow=True), metadata=service.metadata("user"), timeout=60
    )
    lines = aiter(follow)
    await site.say(SiteMessage(log=site_pb2.LogLines(job=assignment.job, worker="w", lines=["one", "two"])))
    assert [(await anext(lines)).line, (await anext(lines)).line] == ["one", "two"]
    await site.say(SiteMessage(log=site_pb2.LogLines(job=assignment.job, worker="w", lines=["three"])))
    await site.say(SiteMessage(ended=site_pb2.JobEnded(job=assignment.job, outcome="failed", message="it broke")))
    assert [record.line async for record in lines] == ["three"]
    tail = service.client.JobLogs(client_pb2.LogsRequest(job=assignment.job, tail=2), metadata=service.metadata("user"))
    assert [record.line async for record in tail] == ["two", "three"]
    why = await service.call("Why", client_pb2.JobRequest(job=assignment.job))
    assert [(reason.code, reason.message) for reason in why.reasons] == [("failed", "it broke")]


async def test_an_operators_drain_reaches_the_agent(service: Service) -> None:
    site = await FakeSite.connect(service)
    agent, lease = await lend_ready_node(service, site)
    drained = await service.call("Drain", client_pb2.DrainRequest(site="s1", grace_s=20, cause="upgrade"))
    assert list(drained.nodes) == ["n1"]
    asked = await agent.hear("reclaim")
    assert (asked.epoch, asked.grace_s, asked.cause) == (lease.epoch, 20, "upgrade")


async def test_a_cancelled_job_is_ended_at_its_site(service: Service) -> None:
    site = await FakeSite.connect(service)
    await lend_ready_node(service, site)
    assignment = await running_job(service, site)
    shown = await service.call("CancelJob", client_pb2.JobRequest(job=assignment.job), role="user")
    assert shown.state == "ending"
    assert (await site.hear("end")).job == assignment.job
    await site.say(SiteMessage(ended=site_pb2.JobEnded(job=assignment.job, outcome="cancelled")))

    async def cancelled() -> bool:
        return (await service.job(assignment.job)).state == "cancelled"

    await service.until(cancelled)


async def test_a_peer_that_comes_back_hears_again_what_holds(service: Service) -> None:
    site = await FakeSite.connect(service, instance="same")
    await lend_ready_node(service, site)
    assignment = await running_job(service, site)
    site.call.cancel()

    async def away() -> bool:
        return not service.loop.inventory.sites["s1"].connected

    await service.until(away)
    again = await FakeSite.connect(service, instance="same")
    resent = await again.hear("assign")
    assert (resent.job, resent.revision, resent.workers) == (assignment.job, assignment.revision, assignment.workers)


async def test_the_same_agent_may_come_back_before_its_old_stream_is_noticed_dead(service: Service) -> None:
    old = await FakeAgent.connect(service, instance="same")
    epoch = await old.lend()
    new = await FakeAgent.connect(service, instance="same", epoch=epoch)
    status, _ = await old.status()
    assert status is grpc.StatusCode.FAILED_PRECONDITION
    site = await FakeSite.connect(service)
    assert (await new.hear("join")).epoch == epoch
    assert service.loop.inventory.nodes["n1"].agent_connected
    assert site.heard == []


async def test_a_second_agent_of_a_node_is_refused_and_the_first_goes_on(service: Service) -> None:
    first = await FakeAgent.connect(service, instance="first")
    epoch = await first.lend()
    second = await FakeAgent.connect(service, instance="second")
    status, details = await second.status()
    assert status is grpc.StatusCode.ALREADY_EXISTS
    assert "n1" in details
    await FakeSite.connect(service)
    assert (await first.hear("join")).epoch == epoch


async def test_a_second_site_process_is_refused(service: Service) -> None:
    await FakeSite.connect(service, instance="first")

    async def there() -> bool:
        return "s1" in service.loop.inventory.sites

    await service.until(there)
    status, details = await (await FakeSite.connect(service, instance="second")).status()
    assert status is grpc.StatusCode.ALREADY_EXISTS
    assert "s1" in details


async def test_a_report_from_a_past_epoch_has_no_effect(service: Service) -> None:
    site = await FakeSite.connect(service)
    agent, lease = await lend_ready_node(service, site)
    await running_job(service, site)
    await agent.say(AgentMessage(left=agent_pb2.NodeLeft(epoch=lease.epoch + 5, cause="reclaimed")))
    await agent.say(AgentMessage(report=agent_pb2.NodeReport(epoch=lease.epoch, spare_devices=["cpu:0"], source="x")))

    async def reported() -> bool:
        return service.loop.inventory.nodes["n1"].source == "x"

    await service.until(reported)
    (node,) = (await service.call("ListNodes", client_pb2.ListNodesRequest(site="s1"))).nodes
    assert (node.state, node.lease.epoch, len(node.workers)) == ("lent", lease.epoch, 1)


async def test_a_submit_with_the_same_request_id_makes_one_job(service: Service) -> None:
    answers = await asyncio.gather(*(service.submit(request_id="r1") for _ in range(5)))
    assert len({answer.job for answer in answers}) == 1
    assert sorted(answer.existed for answer in answers) == [False, True, True, True, True]
    assert (await service.submit(request_id="r2")).job != answers[0].job
    listed = await service.call("ListJobs", client_pb2.ListJobsRequest())
    assert len(listed.jobs) == 2


async def test_a_site_may_not_speak_of_another_sites_lease(service: Service) -> None:
    site = await FakeSite.connect(service)
    _, lease = await lend_ready_node(service, site)
    other = await FakeSite.connect(service, site="s2")
    await other.say(SiteMessage(node_gone=site_pb2.NodeGone(lease=lease)))
    status, details = await other.status()
    assert status is grpc.StatusCode.PERMISSION_DENIED
    assert "which is of site 's1'" in details


async def test_names_find_live_jobs_first(service: Service) -> None:
    old = (await service.submit()).job
    await service.call("CancelJob", client_pb2.JobRequest(job="echo"))
    assert (await service.job("echo")).id == old
    new = (await service.submit()).job
    assert (await service.job("echo")).id == new
    twin = (await service.submit({**TASK, "name": "echo"})).job
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await service.job("echo")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(refused.value).code == "ambiguous_name"
    assert new in str(refused.value.details())
    assert twin in str(refused.value.details())
