"""`python -m scheduler` as people run it: started, killed, refused, and asked for its metrics."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from protocol import client_pb2
from protocol.client_pb2_grpc import FallowServiceStub
from protocol.metadata import TOKEN_KEY
from tests.rpc.service import TASK

pytestmark = pytest.mark.slow

PATIENCE_S = 90.0
ANY_PORTS = ("--listen", "127.0.0.1:0", "--page", "127.0.0.1:0")


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `python -m scheduler` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "scheduler", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S
    )


class Scheduler:
    """A scheduler process on the database of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ready = folder / "ready.json"
        ready.unlink(missing_ok=True)
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scheduler", "serve", *self.place, *ANY_PORTS, "--ready-file", str(ready)],
                stderr=log,
            )
        deadline_s = time.monotonic() + PATIENCE_S
        while not ready.exists():
            assert self.process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline_s, "the scheduler does not get ready"
            time.sleep(0.05)
        self.ready: dict[str, Any] = json.loads(ready.read_text())

    @property
    def place(self) -> list[str]:
        return ["--db", f"sqlite:///{self.folder / 'fallow.db'}", "--dir", str(self.folder)]

    def token(self, role: str) -> str:
        """A new token, made beside the running scheduler."""
        made = command("token", "create", *self.place, "--role", role, "--name", role)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def call(self, method: str, request: Any, token: str) -> Any:
        """One call of FallowService."""
        with grpc.insecure_channel(self.ready["address"]) as channel:
            stub = FallowServiceStub(channel)
            return getattr(stub, method)(request, metadata=((TOKEN_KEY, f"Bearer {token}"),), timeout=PATIENCE_S)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    running = Scheduler(tmp_path)
    yield running
    if running.process.poll() is None:
        running.end(signal.SIGKILL)


def test_an_acknowledged_submit_survives_sigkill_at_once(tmp_path: Path) -> None:
    running = Scheduler(tmp_path)
    token = running.token("user")
    spec = json.dumps(TASK)
    jobs = []
    for number in range(2):
        request = client_pb2.SubmitRequest(spec_json=spec, request_id=f"request-{number}")
        jobs.append(running.call("Submit", request, token).job)
        running.end(signal.SIGKILL)
        running = Scheduler(tmp_path)
        assert [job.id for job in running.call("ListJobs", client_pb2.ListJobsRequest(), token).jobs] == jobs
        again = running.call("Submit", request, token)
        assert (again.job, again.existed) == (jobs[-1], True)
    shown = running.call("GetJob", client_pb2.JobRequest(job=jobs[0]), token)
    assert (shown.state, shown.user, json.loads(shown.spec_json)) == ("queued", "user", TASK)
    assert running.end() == 0


def test_it_starts_serves_and_stops(scheduler: Scheduler) -> None:
    assert scheduler.ready["pid"] == scheduler.process.pid
    page = scheduler.ready["page"]
    assert httpx.get(f"{page}/healthz").text == "ok\n"
    assert "<html" in httpx.get(page).text
    viewer, agent = scheduler.token("viewer"), scheduler.token("agent")
    scheduler.call("ListJobs", client_pb2.ListJobsRequest(), viewer)

    families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{page}/metrics").text)}
    calls = {tuple(sorted(s.labels.items())): s.value for s in families["fallow_grpc_calls"].samples}
    assert calls[("method", "ListJobs"), ("status", "OK")] == 1
    assert {"fallow_nodes", "fallow_jobs", "fallow_reclaim_free_seconds", "fallow_save_seconds"} <= families.keys()

    stranger = {"x-forwarded-for": "192.0.2.1"}  # a proxy on this machine speaks for others
    for headers, status in (
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": f"Bearer {agent}"}, 401),
        ({"authorization": f"Bearer {viewer}"}, 200),
    ):
        assert httpx.get(f"{page}/metrics", headers=stranger | headers).status_code == status

    second = command("serve", *scheduler.place, *ANY_PORTS)
    assert second.returncode == 4
    assert "Another scheduler is running on the database" in second.stderr

    with httpx.stream("GET", f"{page}/events", timeout=30) as events:  # an open page does not hold it up
        assert events.status_code == 200
        assert scheduler.end() == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(page.rpartition(":")[2])), timeout=10)


def test_a_scheduler_that_lost_its_database_to_another_one_stops(scheduler: Scheduler) -> None:
    token = scheduler.token("user")
    (scheduler.folder / "fallow.db.lock").unlink()  # as on a file system that forgot the lock
    successor = Scheduler(scheduler.folder)
    with pytest.raises(grpc.RpcError) as refused:
        scheduler.call("Submit", client_pb2.SubmitRequest(spec_json=json.dumps(TASK)), token)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert scheduler.process.wait(PATIENCE_S) == 4
    assert "Another scheduler has taken over the database" in (scheduler.folder / "log").read_text()
    assert list(successor.call("ListJobs", client_pb2.ListJobsRequest(), token).jobs) == []
    assert successor.end() == 0
