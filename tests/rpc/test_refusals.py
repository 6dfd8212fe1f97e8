"""Everything refused has a status that fits, a message that names the field, and a remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from protocol import agent_pb2, client_pb2, common_pb2, site_pb2
from protocol.agent_pb2_grpc import AgentServiceStub
from protocol.site_pb2_grpc import SiteServiceStub
from tests.rpc.service import TASK, FakeAgent, FakeSite, Peer, Service, reason_of

Code = grpc.StatusCode
pb = client_pb2

SERVE = {
    "kind": "serve",
    "name": "chat",
    "serve": {"model": "m", "shape": {"layers": 2, "experts": 4}, "shards": {"min": 1, "max": 2}, "copies": 2},
}
TRAIN = {"kind": "train", "name": "t", "width": {"min": 1, "max": 4}, "train": {"output": "o"}}


async def refused(service: Service, method: str, request: Any, role: str = "admin") -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await service.call(method, request, role)
    reason = reason_of(error.value)
    assert reason.message
    assert error.value.details() == f"{reason.message} {reason.remedy}".strip()
    return error.value


@pytest.mark.parametrize(
    ("method", "request_", "status", "says"),
    [
        ("GetJob", pb.JobRequest(job="nope"), Code.NOT_FOUND, "there is no job 'nope'"),
        ("WatchJob", pb.JobRequest(job="nope"), Code.NOT_FOUND, "there is no job 'nope'"),
        ("JobLogs", pb.LogsRequest(job="nope"), Code.NOT_FOUND, "there is no job 'nope'"),
        ("Why", pb.JobRequest(), Code.NOT_FOUND, "job"),
        ("CancelJob", pb.JobRequest(job="nope"), Code.NOT_FOUND, "fallow jobs --all"),
        ("Drain", pb.DrainRequest(), Code.INVALID_ARGUMENT, "give a node or a site"),
        ("Drain", pb.DrainRequest(node="n", site="s"), Code.INVALID_ARGUMENT, "one of the two"),
        ("Drain", pb.DrainRequest(node="n9"), Code.NOT_FOUND, "there is no node 'n9'"),
        ("Drain", pb.DrainRequest(node="n", grace_s=-1), Code.INVALID_ARGUMENT, "grace_s"),
        ("Drain", pb.DrainRequest(node="n", grace_s=float("nan")), Code.INVALID_ARGUMENT, "grace_s"),
        ("Usage", pb.UsageRequest(by="moon"), Code.INVALID_ARGUMENT, "job, node, site, user"),
        ("CreateToken", pb.CreateTokenRequest(name="x", role="king"), Code.INVALID_ARGUMENT, "admin, user, agent"),
        ("CreateToken", pb.CreateTokenRequest(name="", role="user"), Code.INVALID_ARGUMENT, "name"),
        ("CreateToken", pb.CreateTokenRequest(name="admin", role="user"), Code.ALREADY_EXISTS, "revoke"),
        ("RevokeToken", pb.RevokeTokenRequest(name="x"), Code.NOT_FOUND, "fallow token list"),
        ("Submit", pb.SubmitRequest(spec_json="{}"), Code.INVALID_ARGUMENT, "kind: Field required"),
        ("Submit", pb.SubmitRequest(spec_json="not json"), Code.INVALID_ARGUMENT, "Invalid JSON"),
        ("Submit", pb.SubmitRequest(spec_json="x" * 1_000_001), Code.INVALID_ARGUMENT, "larger than"),
        ("Submit", pb.SubmitRequest(spec_json="{}", request_id="x" * 201), Code.INVALID_ARGUMENT, "request_id"),
        ("JobLogs", pb.LogsRequest(job="nope", tail=-1), Code.INVALID_ARGUMENT, "tail"),
    ],
)
async def test_requests(service: Service, method: str, request_: Any, status: grpc.StatusCode, says: str) -> None:
    error = await refused(service, method, request_)
    assert error.code() is status
    assert says in error.details()


def changed(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A deep copy of a spec with one field set."""
    copy: dict[str, Any] = json.loads(json.dumps(spec))
    part = copy
    *way, last = path.split(".")
    for step in way:
        part = part.setdefault(step, {})
    part[last] = value
    return copy


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (changed(TASK, "width", {"min": 3, "max": 2}), "width: min (3) is greater than max (2)"),
        (changed(TASK, "colour", "red"), "colour: Extra inputs are not permitted"),
        (changed(TASK, "task.output", "../up"), "task.output: a path may not contain '..'"),
        (changed(TASK, "weight", "1"), "weight"),
        (changed(TRAIN, "width", {"min": 17, "max": 20}), "width.min: 17 trainers share 16 sequences"),
        (changed(TRAIN, "train.model", {"layers": 512, "experts": 4096}), "layers x experts is 2097152"),
        (
            changed(TRAIN, "train.model", {"layers": 512, "experts": 128, "hidden_size": 65536, "expert_size": 262144}),
            "TiB of state",
        ),
        (changed(SERVE, "serve.copies", 3), "serve.copies: 3 copies need as many shards"),
        (changed(SERVE, "serve.shards", {"min": 17, "max": 20}), "serve.shards.min: 17 shards are more than"),
        (changed(SERVE, "serve.shape", None), "serve.shape: missing"),
    ],
)
async def test_specs_that_no_set_of_nodes_can_satisfy(service: Service, spec: dict[str, Any], says: str) -> None:
    error = await refused(service, "Submit", pb.SubmitRequest(spec_json=json.dumps(spec)))
    assert error.code() is Code.INVALID_ARGUMENT
    assert says in error.details()
    assert (await service.call("ListJobs", pb.ListJobsRequest(all=True))).jobs == []


@pytest.mark.parametrize("spec", [TASK, TRAIN, SERVE])
async def test_good_specs_are_taken_and_wait_with_a_reason(service: Service, spec: dict[str, Any]) -> None:
    job = (await service.submit(spec)).job

    async def waiting() -> Any:
        shown = await service.job(job)
        return shown if shown.HasField("waiting") else None

    shown = await service.until(waiting)
    assert shown.state == "queued"
    assert shown.waiting.message
    assert shown.waiting.remedy


async def test_only_the_owner_or_an_admin_cancels(service: Service) -> None:
    job = (await service.submit(role="admin")).job
    error = await refused(service, "CancelJob", pb.JobRequest(job=job), role="user")
    assert error.code() is Code.PERMISSION_DENIED
    assert "belongs to 'admin'" in error.details()
    await service.call("CancelJob", pb.JobRequest(job=job), role="admin")
    mine = (await service.submit(role="user")).job
    await service.call("CancelJob", pb.JobRequest(job=mine), role="user")


async def test_a_node_that_is_not_lent_cannot_be_drained(service: Service) -> None:
    await FakeAgent.connect(service)

    async def known() -> bool:
        return "n1" in service.loop.inventory.nodes

    await service.until(known)
    error = await refused(service, "Drain", pb.DrainRequest(node="n1", grace_s=5))
    assert error.code() is Code.FAILED_PRECONDITION
    assert "not lent" in error.details()


def agent_says(**body: Any) -> agent_pb2.AgentMessage:
    return agent_pb2.AgentMessage(**body)


HELLO = agent_pb2.AgentHello(node="n1", site="s1", instance="i1")
DEVICE = common_pb2.Device(id="cpu:0", kind="cpu", memory_bytes=1)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "opened without a hello"),
        ([agent_says()], "first message is empty where AgentHello must be"),
        ([agent_says(report=agent_pb2.NodeReport())], "first message is report where AgentHello must be"),
        ([agent_says(hello=agent_pb2.AgentHello(site="s", instance="i"))], "hello.node: '' is not a name"),
        ([agent_says(hello=agent_pb2.AgentHello(node="n/1", site="s", instance="i"))], "hello.node: 'n/1'"),
        (
            [agent_says(hello=agent_pb2.AgentHello(node="n", site="s", instance="i", devices=[DEVICE, DEVICE]))],
            "two devices have one id",
        ),
        ([agent_says(hello=HELLO), agent_says()], "AgentMessage is empty"),
        ([agent_says(hello=HELLO), agent_says(hello=HELLO)], "AgentMessage is hello"),
        ([agent_says(hello=HELLO), agent_says(report=agent_pb2.NodeReport(epoch=-1))], "report.epoch: -1"),
        ([agent_says(hello=HELLO), agent_says(report=agent_pb2.NodeReport(grace_s=float("inf")))], "report.grace_s"),
        ([agent_says(hello=HELLO), agent_says(left=agent_pb2.NodeLeft())], "left.epoch: 0 is less than 1"),
    ],
)
async def test_malformed_words_of_an_agent(service: Service, messages: list[Any], says: str) -> None:
    status, details = await spoken(AgentServiceStub(service.channel).Connect, service.metadata("agent"), messages)
    assert status is Code.INVALID_ARGUMENT
    assert says in details


SITE_HELLO = site_pb2.SiteMessage(hello=site_pb2.SiteHello(site="s1", instance="i1"))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([site_pb2.SiteMessage()], "first message is empty where SiteHello must be"),
        ([SITE_HELLO, site_pb2.SiteMessage()], "SiteMessage is empty"),
        (
            [SITE_HELLO, site_pb2.SiteMessage(worker=site_pb2.WorkerChanged(job="j", worker="w", state="running"))],
            "lease.node",
        ),
        (
            [SITE_HELLO, site_pb2.SiteMessage(ended=site_pb2.JobEnded(job="j", outcome="exploded"))],
            "ended.outcome: 'exploded' is unknown. Send one of done, failed, cancelled.",
        ),
        ([SITE_HELLO, site_pb2.SiteMessage(progress=site_pb2.JobProgress(job="j", step=-3))], "progress.step"),
    ],
)
async def test_malformed_words_of_a_site(service: Service, messages: list[Any], says: str) -> None:
    status, details = await spoken(SiteServiceStub(service.channel).Session, service.metadata("site"), messages)
    assert status is Code.INVALID_ARGUMENT
    assert says in details


async def test_a_loss_that_is_not_a_number_is_no_malformed_word(service: Service) -> None:
    site = await FakeSite.connect(service)
    await site.say(site_pb2.SiteMessage(progress=site_pb2.JobProgress(job="gone", loss=float("nan"))))
    await site.say(site_pb2.SiteMessage(heartbeat=site_pb2.SiteHeartbeat()))
    job = (await service.submit()).job
    assert (await service.job(job)).id == job
    assert service.loop.inventory.sites["s1"].connected


async def spoken(connect: Callable[..., Any], metadata: Any, messages: list[Any]) -> tuple[grpc.StatusCode, str]:
    """Say these messages and nothing more; how the stream ended."""
    peer = Peer(connect(metadata=metadata))
    for message in messages:
        await peer.say(message)
    await peer.call.done_writing()
    return await peer.status()
