"""Who may call what: every method against every role, and what callers without the right token hear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest

from protocol import agent_pb2, client_pb2, site_pb2
from protocol.agent_pb2_grpc import AgentServiceStub
from protocol.client_pb2_grpc import FallowServiceStub
from protocol.metadata import TOKEN_KEY
from protocol.site_pb2_grpc import SiteServiceStub
from scheduler.clock import ManualClock
from scheduler.domain.reasons import Reason
from scheduler.rpc.auth import ROLES, TRUST_S, Auth, bearer
from scheduler.store.failures import StoreFailed
from scheduler.store.sql_store import SqlStore
from scheduler.store.tokens import TokenRole, Tokens
from tests.rpc.service import FakeAgent, Service, database_in, reason_of, serving

DENIED = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)
STUBS: dict[str, Any] = {
    "AgentService": AgentServiceStub,
    "SiteService": SiteServiceStub,
    "FallowService": FallowServiceStub,
}


def test_every_method_of_ours_has_its_roles() -> None:
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in (agent_pb2, site_pb2, client_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert methods == set(ROLES)


async def outcome(service: Service, method: str, metadata: Any) -> tuple[grpc.StatusCode, str, Any]:
    """How a call with an empty request, or an empty stream, ends."""
    _, name, rpc = method.replace("fallow.v1.", "").split("/")
    call = getattr(STUBS[name](service.channel), rpc)
    if name == "FallowService":
        descriptor = client_pb2.DESCRIPTOR.services_by_name[name].methods_by_name[rpc]
        answer = call(getattr(client_pb2, descriptor.input_type.name)(), metadata=metadata, timeout=30)
    else:
        answer = call(metadata=metadata, timeout=30)
        await answer.done_writing()
    try:
        if hasattr(answer, "read"):
            await answer.read()
        else:
            await answer
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or "", error
    return await answer.code(), await answer.details(), None


async def test_every_role_may_call_exactly_its_methods(service: Service) -> None:
    for method, allowed in ROLES.items():
        for role in TokenRole:
            status, details, _ = await outcome(service, method, service.metadata(role))
            if role in allowed:
                assert status not in DENIED, (method, role, details)
            else:
                assert status is grpc.StatusCode.PERMISSION_DENIED, (method, role, details)
                assert f"has the role {role}" in details
                assert " or ".join(sorted(allowed)) in details


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer fallow-admin-wrong", "Bearer something"]
)
async def test_without_a_valid_token_nothing_is_answered(service: Service, header: str | None) -> None:
    metadata = () if header is None else ((TOKEN_KEY, header),)
    for method in ROLES:
        status, details, error = await outcome(service, method, metadata)
        assert status is grpc.StatusCode.UNAUTHENTICATED, method
        assert "token" in details
        assert "fallow token create" in details
        if error is not None:
            assert reason_of(error).code == "unauthenticated"


async def test_tokens_of_clients_work_and_end(service: Service) -> None:
    request = client_pb2.CreateTokenRequest(name="ada", role="user", valid_s=1000)
    service.secrets["ada"] = (await service.call("CreateToken", request)).token
    assert (await service.submit(role="ada")).job
    listed = {t.name: t for t in (await service.call("ListTokens", client_pb2.ListTokensRequest())).tokens}
    assert listed["ada"].role == "user"
    assert listed["ada"].expires_s == pytest.approx(listed["ada"].created_s + 1000)
    assert not listed["admin"].HasField("expires_s")
    await service.call("RevokeToken", client_pb2.RevokeTokenRequest(name="ada"))

    async def refused() -> bool:
        status, _, _ = await outcome(service, "/fallow.v1.FallowService/ListJobs", service.metadata("ada"))
        return status is grpc.StatusCode.UNAUTHENTICATED

    await service.until(refused)


async def test_a_revoked_agent_is_cut_off_its_open_stream(tmp_path: Path) -> None:
    async with serving(database_in(tmp_path), recheck_s=0.1) as service:
        agent = await FakeAgent.connect(service)
        await agent.lend()
        service.tokens.revoke("agent", 0.0)
        status, details = await agent.status()
        assert status is grpc.StatusCode.UNAUTHENTICATED
        assert "revoked" in details


async def test_calls_are_counted_by_method_and_status(service: Service) -> None:
    await service.call("ListJobs", client_pb2.ListJobsRequest())
    await outcome(service, "/fallow.v1.FallowService/GetJob", service.metadata("admin"))
    await outcome(service, "/fallow.v1.FallowService/GetJob", ())
    assert service.gate.calls["ListJobs", "OK"] == 1
    assert service.gate.calls["GetJob", "NOT_FOUND"] == 1
    assert service.gate.calls["GetJob", "UNAUTHENTICATED"] == 1


def test_a_lookup_is_trusted_for_a_moment_only(tmp_path: Path) -> None:
    store, clock = SqlStore(database_in(tmp_path)), ManualClock(100.0)
    tokens = Tokens(store.database)
    auth = Auth(tokens, clock)
    secret, brief = tokens.create("ada", "user", 100.0), tokens.create("bob", "user", 100.0, valid_s=1.0)
    assert auth.find(secret)
    assert auth.find(brief)
    tokens.revoke("ada", 100.0)
    clock.advance_to(100.0 + TRUST_S)
    assert auth.find(secret)
    assert auth.find(brief) is None
    clock.advance_to(100.1 + TRUST_S)
    assert auth.find(secret) is None
    store.close()


def test_a_failing_database_locks_nobody_out_who_was_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = SqlStore(database_in(tmp_path)), ManualClock(100.0)
    tokens = Tokens(store.database)
    auth = Auth(tokens, clock)
    known, brief = tokens.create("ada", "user", 100.0), tokens.create("bob", "user", 100.0, valid_s=9.0)
    new = tokens.create("new", "user", 100.0)
    assert auth.find(known)
    assert auth.find(brief)

    def fail(secret: str, now_s: float) -> None:
        raise StoreFailed(Reason("database_unreachable", "It does not answer.", "Start it."))

    monkeypatch.setattr(tokens, "find", fail)
    clock.advance_to(500.0)
    assert auth.find(known)
    for secret in (brief, new):
        with pytest.raises(StoreFailed):
            auth.find(secret)
    store.close()


@pytest.mark.parametrize(("header", "token"), [("Bearer x", "x"), ("bearer  x ", "x"), ("x", ""), ("", "")])
def test_bearer(header: str, token: str) -> None:
    assert bearer(header) == token


async def test_the_key_of_an_endpoint_is_told_to_its_owner_alone(service: Service) -> None:
    shape = {"layers": 2, "experts": 4}
    part = {"model": "/models/m", "host": "0.0.0.0", "api_key": "a-key-of-mine", "shape": shape}
    job = (await service.submit({"kind": "serve", "name": "chat", "serve": part})).job
    for method in ("GetJob", "Why"):
        for role, told in (("user", True), ("admin", True), ("viewer", False)):
            answer = await service.call(method, client_pb2.JobRequest(job=job), role)
            spec_json = (answer.job if method == "Why" else answer).spec_json
            assert ("a-key-of-mine" in spec_json) is told, (method, role)
            assert json.loads(spec_json)["serve"]["model"] == "/models/m"
