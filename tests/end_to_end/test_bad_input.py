"""What is wrong is said where a user sees it, with an exit code, and costs nobody anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from fallow.local_cluster import LocalCluster
from tests.end_to_end.conftest import Fallow
from tests.end_to_end.small import train_spec, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_wrong_token_is_refused(fallow: Fallow, cluster: LocalCluster) -> None:
    done = fallow("jobs", FALLOW_ADDRESS=cluster.address, FALLOW_TOKEN="fallow-user-wrong")
    assert done.code == 4
    assert "token" in done.err


def test_a_viewer_may_look_but_not_submit(fallow: Fallow, cluster: LocalCluster, tmp_path: Path) -> None:
    viewer = cluster.client.create_token("a-viewer", "viewer")
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(train_spec(tmp_path / "out")))
    assert fallow("nodes", FALLOW_TOKEN=viewer).code == 0
    refused = fallow("submit", str(file), FALLOW_TOKEN=viewer)
    assert refused.code == 4
    assert "viewer" in refused.err
    cluster.client.revoke_token("a-viewer")
    deadline_s = time.monotonic() + 10  # a token counts for two seconds after it was looked up
    while fallow("nodes", FALLOW_TOKEN=viewer).code != 4:
        assert time.monotonic() < deadline_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: [train", "not YAML"),
        ("kind: task\nname: t\nwidth: {min: 3, max: 2}\ntask: {command: ['true'], output: o}", "greater than max"),
        ("kind: task\nname: t\ntask: {command: ['true'], output: ../o}", "task.output"),
    ],
)
def test_a_bad_spec_names_its_field(fallow: Fallow, tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    done = fallow("submit", str(file))
    assert done.code == 4
    assert said in done.err


def test_the_scheduler_checks_what_a_client_let_through(cluster: LocalCluster) -> None:
    import grpc

    from fallow.rpc import credentials, open_channel
    from protocol import client_pb2
    from protocol.client_pb2_grpc import FallowServiceStub

    with open_channel(cluster.client.context) as channel, pytest.raises(grpc.RpcError) as caught:
        FallowServiceStub(channel).Submit(
            client_pb2.SubmitRequest(spec_json='{"kind": "task", "name": "t", "colour": "red"}', request_id="r"),
            metadata=credentials(cluster.client.context),
        )
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "colour" in caught.value.details()


def test_a_model_too_large_for_all_nodes_waits_and_says_why(
    fallow: Fallow, cluster: LocalCluster, tmp_path: Path
) -> None:
    huge = {"vocab_size": 1000, "hidden_size": 8192, "layers": 64, "heads": 64, "experts": 64, "expert_size": 16384}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(train_spec(tmp_path / "out", model=huge)))
    submitted = fallow("submit", str(file), "--json")
    if submitted.code == 4:
        assert "memory" in submitted.err
        return
    job = submitted.json["job"]
    waiting = until(cluster.client, job, lambda j: j.waiting is not None).waiting
    assert waiting is not None
    assert waiting.remedy
    why = fallow("why", job)
    assert waiting.message in why.out
    assert "GB" in why.out or "GiB" in why.out or "bytes" in why.out


def test_a_job_that_is_too_wide_says_how_many_nodes_there_are(cluster: LocalCluster, tmp_path: Path) -> None:
    job = cluster.client.submit(train_spec(tmp_path / "out", width=(50, 50), global_batch=64)).job
    reason = until(cluster.client, job, lambda j: j.waiting is not None).waiting
    assert reason is not None
    assert "50" in reason.message
    assert reason.remedy


def test_jobs_that_are_not_there(fallow: Fallow) -> None:
    done = fallow("status", "no-such-job")
    assert done.code == 4
    assert "no-such-job" in done.err


def test_a_port_in_use(fallow: Fallow, cluster: LocalCluster, tmp_path: Path) -> None:
    place = ["--db", f"sqlite:///{tmp_path}/s.db", "--dir", str(tmp_path / "s"), "--page", "127.0.0.1:0"]
    done = fallow("scheduler", "serve", "--listen", cluster.address, *place)
    assert done.code in (1, 2, 4)
    assert cluster.address in done.err


def test_an_address_of_the_network_needs_tls(fallow: Fallow, tmp_path: Path) -> None:
    place = ["--db", f"sqlite:///{tmp_path}/s.db", "--dir", str(tmp_path / "s"), "--page", "127.0.0.1:0"]
    done = fallow("scheduler", "serve", "--listen", "0.0.0.0:0", *place)
    assert done.code != 0
    assert "--tls-cert" in done.err


def test_a_second_agent_of_the_same_name_is_refused_and_the_first_stays(
    fallow: Fallow, cluster: LocalCluster, tmp_path: Path
) -> None:
    who = ["--node", "node-1", "--site", "local", "--scheduler", cluster.address]
    token = ["--token-file", str(cluster.home / "tokens" / "agent")]
    before = next(n for n in cluster.client.nodes() if n.id == "node-1")
    done = fallow("agent", *who, *token, "--dir", str(tmp_path / "a"), "--source", "always", "--cores", "1")
    assert done.code == 4
    assert "node-1" in done.err
    after = next(n for n in cluster.client.nodes() if n.id == "node-1")
    assert (after.epoch, after.lease_state) == (before.epoch, "ready")


def test_up_twice_in_one_home(fallow: Fallow) -> None:
    done = fallow("up", "--detach")
    assert done.code == 2
    assert "fallow down" in done.err
