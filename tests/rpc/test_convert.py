"""Nouns survive the wire; commands say what the executor was told."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.clocks import PeerClock
from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState, Site
from scheduler.domain.events import AgentConnected, NodeReclaimed, NodeReported
from scheduler.domain.jobs import Assignment, Job, JobKind, JobState, Role, WorkerSlot
from scheduler.domain.plan import Assign
from scheduler.domain.reasons import Reason, Refused
from scheduler.executor import Executor
from scheduler.rpc import checks, convert, reports
from scheduler.rpc.refusals import status_code
from scheduler.rpc.sessions import Session, Sessions

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,20}[A-Za-z0-9])?", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
bytes_ = st.integers(0, 2**50)
devices = st.builds(Device, texts, names, texts, bytes_, st.integers(0, 1000))
keys = st.builds(LeaseKey, names, st.integers(1, 2**60))
experts = st.tuples(st.integers(0, 500), st.integers(0, 500))
slots = st.builds(
    WorkerSlot,
    names,
    st.sampled_from(Role),
    keys,
    st.lists(texts, max_size=3).map(tuple),
    st.lists(experts, max_size=5).map(tuple),
)


@given(devices)
def test_devices(device: Device) -> None:
    assert convert.device_from_wire(convert.device_to_wire(device)) == device


@given(keys)
def test_leases(key: LeaseKey) -> None:
    assert convert.lease_from_wire(convert.lease_to_wire(key)) == key


@given(st.builds(Reason, texts, texts, texts))
def test_reasons(reason: Reason) -> None:
    assert convert.reason_from_wire(convert.reason_to_wire(reason)) == reason


@given(slots)
def test_workers(slot: WorkerSlot) -> None:
    assert convert.slot_from_wire(convert.slot_to_wire(slot, {})) == slot


LEASE = Lease(LeaseKey("n1", 7), "s1", LeaseState.READY, (), "10.0.0.1", 1.0, "cohort-3")
JOB = Job("j1", "name", JobKind.TASK, "ada", JobState.RUNNING, 1.0, '{"a": 1}', (), site="s1")


@given(st.lists(slots, max_size=4), st.none() | st.floats(0, 1e12), st.lists(names, max_size=3))
def test_an_assignment_carries_everything_that_the_site_needs(
    workers: list[WorkerSlot], deadline_s: float | None, lost: list[str]
) -> None:
    step = Assign(Assignment("j1", 5, tuple(workers)), "grow", deadline_s)
    leases = [Lease(slot.lease, "s1", LeaseState.READY, (), "10.0.0.1", 1.0, "c9") for slot in workers]
    sent = convert.assignment(JOB, step, leases, lost).assign
    assert (sent.job, sent.revision, sent.spec_json, sent.cause) == ("j1", 5, JOB.spec_json, "grow")
    assert [convert.slot_from_wire(worker) for worker in sent.workers] == workers
    assert {(worker.address, worker.cohort) for worker in sent.workers} <= {("10.0.0.1", "c9")}
    assert (sent.deadline_s if sent.HasField("deadline_s") else None) == deadline_s
    assert list(sent.lost_workers) == lost


async def kinds(session: Session[Any]) -> list[str]:
    """What waits for a peer."""
    session.end()
    return [str(command.WhichOneof("body")) async for command in session.commands()]


async def test_the_executor_finds_its_peers_and_drops_what_is_for_peers_that_are_away() -> None:
    sessions: Executor = Sessions()
    assert isinstance(sessions, Sessions)
    step = Assign(Assignment("j1", 1, ()), "reclaim")
    sessions.grant(LEASE)  # nobody is there yet
    agent = sessions.agents.open("n1", "a")
    site = sessions.sites.open("s1", "i")
    other = sessions.sites.open("s2", "i")
    sessions.grant(LEASE)
    sessions.join(LEASE, Site("s1", True, "i", "host:1", "secret", "2.60.0"))
    sessions.leave(LEASE, "reclaimed")
    sessions.reclaim(LEASE, 5.0, "drained")
    sessions.assign(JOB, step, (), ())
    sessions.end(JOB, "cancelled")
    sessions.forget(LEASE.key, "s1")
    assert await kinds(agent) == ["granted", "join", "leave", "reclaim"]
    assert await kinds(site) == ["assign", "end", "forget"]
    assert await kinds(other) == []


@given(st.floats())
def test_only_finite_times_pass(seconds: float) -> None:
    if math.isfinite(seconds) and seconds >= 0:
        assert checks.seconds("f", seconds) == seconds
        return
    with pytest.raises(Refused) as refused:
        checks.seconds("f", seconds)
    assert refused.value.reason.message.startswith("f: ")


@given(st.text(max_size=30))
def test_names_that_pass_are_safe_anywhere(value: str) -> None:
    try:
        checks.name("node", value)
    except Refused:
        return
    assert value.isascii()
    assert not set(value) & set("/\\\0 '\"\n,")
    assert value not in (".", "..", "")


@given(st.builds(Reason, texts, texts, texts))
def test_no_refusal_is_a_success(reason: Reason) -> None:
    assert status_code(reason).name != "OK"


def test_an_agents_words_become_events_of_its_own_node() -> None:
    hello = reports.agent_pb2.AgentHello(node="n1", site="s1", instance="i", epoch=4)
    event = reports.agent_hello(reports.agent_pb2.AgentMessage(hello=hello), 9.0, "cause-1")
    assert event == AgentConnected(
        at_s=9.0, cause_id="cause-1", node="n1", site="s1", instance="i", address="", devices=(), epoch=4
    )
    notice = reports.agent_pb2.ReclaimNotice(epoch=4, deadline_s=20.0, grace_s=10.0, cause="owner")
    message = reports.agent_pb2.AgentMessage(reclaim=notice)
    assert reports.agent_event("n1", "i", message, PeerClock(), 10.0, "cause-2") == NodeReclaimed(
        at_s=10.0, cause_id="cause-2", lease=LeaseKey("n1", 4), deadline_s=20.0, grace_s=10.0, cause="owner"
    )


def test_the_times_of_a_node_whose_clock_is_fast_are_taken_by_ours() -> None:
    theirs = PeerClock()
    theirs.hear(1000.0, 900.0)
    notice = reports.agent_pb2.ReclaimNotice(epoch=4, deadline_s=1010.0, grace_s=10.0, cause="owner")
    message = reports.agent_pb2.AgentMessage(reclaim=notice)
    reclaimed = reports.agent_event("n1", "i", message, theirs, 900.0, "cause-1")
    assert isinstance(reclaimed, NodeReclaimed)
    assert reclaimed.deadline_s == 910.0
    said = reports.agent_pb2.NodeReport(epoch=4, expected_end_s=1600.0)
    report = reports.agent_event("n1", "i", reports.agent_pb2.AgentMessage(report=said), theirs, 900.0, "cause-2")
    assert isinstance(report, NodeReported)
    assert report.expected_end_s == 1500.0


@given(st.floats(-1e6, 1e6), st.lists(st.floats(0, 30), min_size=1, max_size=40), st.integers(0, 5))
def test_the_quickest_of_the_last_messages_tells_the_clocks_difference(
    ahead_s: float, delays_s: list[float], silent: int
) -> None:
    theirs = PeerClock()
    for number, delay_s in enumerate(delays_s):
        theirs.hear(2e9 + number + ahead_s, 2e9 + number + delay_s)
    for _ in range(silent):
        theirs.hear(0.0, 2e9)  # an older agent, which does not say when it sent something
    late_s = theirs.here(3e9 + ahead_s) - 3e9
    assert late_s == pytest.approx(min(delays_s[-16:]), abs=1e-5)
