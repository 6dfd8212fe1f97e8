"""From `fallow up` to `fallow down`, as a new user types it."""

from __future__ import annotations

import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fallow.local_cluster import LocalCluster
from tests.end_to_end.conftest import Fallow, run_fallow
from tests.end_to_end.small import train_spec, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def home() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fw-"))
    yield folder
    LocalCluster(folder).kill()
    shutil.rmtree(folder, ignore_errors=True)


def test_up_and_down(home: Path) -> None:
    up = run_fallow(home, "up", "--nodes", "1", "--detach", "--json")
    assert up.code == 0, up.err
    with urllib.request.urlopen(up.json["page"], timeout=30) as page:
        assert page.status == 200
    assert run_fallow(home, "nodes", "--json").json[0]["id"] == "node-1"
    cluster = LocalCluster(home)
    assert cluster.is_running
    down = run_fallow(home, "down", "--json")
    assert down.json == {"stopped": True}
    assert not cluster.is_running
    assert run_fallow(home, "nodes").code == 2
    assert run_fallow(home, "down", "--json").json == {"stopped": False}


def test_run_a_command(fallow: Fallow, tmp_path: Path) -> None:
    done = fallow("run", "--output", str(tmp_path / "out"), "--times", "3", "--width", "2", "--", "echo", "item {i}")
    assert done.code == 0, done.err
    assert {line for line in done.out.splitlines() if line.startswith("item")} == {"item 0", "item 1", "item 2"}


def test_a_train_job_from_submit_to_logs(fallow: Fallow, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(train_spec(tmp_path / "out", steps=30)))
    done = fallow("submit", "--watch", str(file))
    assert done.code == 0, done.err
    job = done.out.splitlines()[0]
    assert "step 30 of 30" in fallow("logs", job).out
    assert (tmp_path / "out" / "model.safetensors").exists() or list((tmp_path / "out").glob("*.safetensors"))
    events = fallow("why", job, "--json").json["events"]
    assert not [e for e in events if e["kind"] == "assign" and "loss" in e["message"]]


def test_a_command_that_fails(fallow: Fallow, tmp_path: Path) -> None:
    done = fallow("run", "--output", str(tmp_path / "out"), "--retries", "0", "--", "false")
    assert done.code == 1
    assert done.err


def test_a_function_from_python(cluster: LocalCluster, tmp_path: Path) -> None:
    factor = 7
    job = cluster.client.run(lambda x: factor * x, [{"x": x} for x in range(4)], output=tmp_path / "out").job
    assert cluster.client.wait(job, 120).succeeded
    assert not [e for e in cluster.client.why(job).events if e.kind == "assign" and "loss" in e.message]
    written = "".join(p.read_text(errors="replace") for p in sorted((tmp_path / "out").rglob("*")) if p.is_file())
    assert "21" in written


def test_drain_by_an_operator_and_lend_again(fallow: Fallow, cluster: LocalCluster) -> None:
    drained = fallow("drain", "node-3", "--grace-s", "5", "--cause", "maintenance", "--json")
    assert drained.json == {"nodes": ["node-3"]}
    fallow("lend", "node-3")
    cluster.await_ready_nodes(3)


def test_reclaim_and_lend_on_the_node_itself(fallow: Fallow, cluster: LocalCluster, tmp_path: Path) -> None:
    assert fallow("reclaim", "node-3", "--grace-s", "4").code == 0
    assert fallow("lend", "node-3").code == 0
    cluster.await_ready_nodes(3)
    node = next(n for n in cluster.client.nodes() if n.id == "node-3")
    assert node.reclaims
    assert all(r.free_s <= r.grace_s for r in node.reclaims)


def test_books_and_tables(fallow: Fallow, cluster: LocalCluster, tmp_path: Path) -> None:
    job = cluster.client.run(["true"], output=tmp_path / "out").job
    until(cluster.client, job, lambda j: j.is_over)
    for command in (("jobs", "--all"), ("nodes",), ("usage", "--by", "node"), ("status", job), ("why", job)):
        done = fallow(*command)
        assert (done.code, bool(done.out)) == (0, True), done.err
    total = fallow("usage", "--json").json["total"]
    assert total["borrowed"] == pytest.approx(sum(total[k] for k in ("useful", "rescale", "idle", "lost")), abs=0.01)
