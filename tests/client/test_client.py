from __future__ import annotations

import base64
import dataclasses
import json
import pickle
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from fallow.client import Client
from fallow.errors import RefusedError, Unreachable
from protocol.common_pb2 import Reason
from tests.client import by_value
from tests.client.fake_scheduler import FakeScheduler, event, job

TASK = {"kind": "task", "name": "t", "task": {"command": ["true"], "output": "/out"}}


def test_a_retried_submit_carries_the_same_request_id(client: Client, scheduler: FakeScheduler) -> None:
    scheduler.failures = [grpc.StatusCode.UNAVAILABLE]
    assert client.submit(TASK).job == "job-1"
    assert len(scheduler.submits) == 2
    assert len({s.request_id for s in scheduler.submits}) == 1


def test_two_submits_are_two_jobs_unless_the_request_id_is_given(client: Client, scheduler: FakeScheduler) -> None:
    client.submit(TASK)
    client.submit(TASK)
    assert len({s.request_id for s in scheduler.submits}) == 2
    assert not client.submit(TASK, "once").existed
    assert client.submit(TASK, "once").existed


def test_the_token_is_sent(client: Client, scheduler: FakeScheduler) -> None:
    client.jobs()
    assert scheduler.tokens_seen == ["Bearer fallow-user-abc"]


def test_a_refusal_has_a_code_and_a_remedy(client: Client, scheduler: FakeScheduler) -> None:
    scheduler.refusal = Reason(code="wrong_token", message="This token is not known.", remedy="Ask for another.")
    with pytest.raises(RefusedError) as caught:
        client.jobs()
    assert (caught.value.code, caught.value.remedy) == ("wrong_token", "Ask for another.")
    with pytest.raises(RefusedError):
        list(client.logs("job-1"))


def test_nobody_there() -> None:
    with Client("127.0.0.1:1", "t") as client, pytest.raises(Unreachable, match=r"127\.0\.0\.1:1"):
        client.jobs()


def test_watch_goes_on_after_a_restart_and_repeats_nothing(client: Client, scheduler: FakeScheduler) -> None:
    scheduler.final = job("running")
    scheduler.watches = [[event(1), event(2)], [event(2), event(3)], [event(4, "done")]]
    assert [e.sequence for e in client.watch("job-1")] == [1, 2, 3, 4]


def test_watch_of_a_job_that_is_over_ends(client: Client) -> None:
    assert list(client.watch("job-1")) == []


def test_a_function_travels_whole(client: Client, scheduler: FakeScheduler, tmp_path: Path) -> None:
    factor = 3

    def times(x: int) -> int:
        return factor * x

    client.run(times, [{"x": 1}, {"x": 2}], output=tmp_path, width=(1, 2))
    spec = json.loads(scheduler.submits[0].spec_json)
    assert spec["name"] == "times"
    assert spec["task"]["array"] == [{"x": 1}, {"x": 2}]
    assert pickle.loads(base64.b64decode(spec["task"]["pickled"]))(5) == 15


def test_a_command_and_a_named_function(client: Client, scheduler: FakeScheduler, tmp_path: Path) -> None:
    client.run(["echo", "{i}"], [{"i": 1}], output=tmp_path)
    client.run("math:sqrt", output=tmp_path)
    first, second = (json.loads(s.spec_json) for s in scheduler.submits)
    assert first["task"]["command"] == ["echo", "{i}"]
    assert second["task"]["function"] == "math:sqrt"


def test_results_are_frozen(client: Client) -> None:
    found = client.job("job-1")
    assert found.succeeded
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.state = "failed"  # type: ignore[misc]
    assert client.wait("job-1") == client.job("job-1")


def test_absent_is_none(client: Client) -> None:
    running, queued = client.jobs()
    assert running.waiting is None
    assert running.ended_s is None
    assert queued.waiting is not None
    assert client.nodes()[0].epoch is None
    assert client.tokens()[0].expires_s is None


def test_a_training_function_travels_with_its_module(client: Client, scheduler: FakeScheduler) -> None:
    client.train(by_value.train, steps=5, global_batch=4, output="out", width=(1, 3), seed=7)
    spec = json.loads(scheduler.submits[0].spec_json)
    assert (spec["name"], spec["width"], spec["train"]["seed"]) == ("train", {"min": 1, "max": 3}, 7)
    assert "model" not in spec["train"]
    code = "import base64, pickle, sys; print(pickle.loads(base64.b64decode(sys.stdin.read()))(None))"
    elsewhere = subprocess.run(
        [sys.executable, "-c", code], input=spec["train"]["pickled"], cwd="/", env={}, capture_output=True, text=True
    )
    assert elsewhere.stdout == "42\n", elsewhere.stderr
    client.train("tests.client.by_value:train", steps=5, global_batch=4, output="out")
    assert json.loads(scheduler.submits[1].spec_json)["train"]["function"] == "tests.client.by_value:train"
