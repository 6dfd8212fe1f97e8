"""What Prometheus reads, after a node was lent, worked and was given back."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from protocol import agent_pb2, site_pb2
from scheduler.clock import ManualClock
from scheduler.rpc.log_feed import LogFeed
from scheduler.serve.metrics import InventoryCollector
from scheduler.store.job_logs import JobLogs
from tests.rpc.service import FakeSite, Service
from tests.rpc.test_flow import AgentMessage, SiteMessage, lend_ready_node, running_job

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(registry: CollectorRegistry) -> Samples:
    text = generate_latest(registry).decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, metric: str, /, **labels: str) -> float:
    return samples[metric, frozenset(labels.items())]


async def test_metrics_follow_the_inventory(service: Service) -> None:
    registry = CollectorRegistry()
    logs = LogFeed(JobLogs(service.store.database), ManualClock())
    registry.register(InventoryCollector(service.loop, service.gate, logs, {"submitted": 1}))
    site = await FakeSite.connect(service)
    agent, lease = await lend_ready_node(service, site)
    assignment = await running_job(service, site)
    progress = site_pb2.JobProgress(job=assignment.job, step=1, rate=2.5, rate_unit="items/s", width=1, loss=0.5)
    await site.say(SiteMessage(progress=progress))

    async def progressed() -> bool:
        return service.loop.inventory.jobs[assignment.job].progress.step == 1

    await service.until(progressed)
    samples = read(registry)
    assert value(samples, "fallow_nodes", site="s1", state="lent") == 1
    assert value(samples, "fallow_nodes", site="s1", state="busy") == 0
    assert value(samples, "fallow_leases", site="s1", state="ready") == 1
    assert value(samples, "fallow_jobs", kind="task", state="running") == 1
    assert value(samples, "fallow_job_width", job=assignment.job, name="echo", state="running") == 1
    assert value(samples, "fallow_job_rate", job=assignment.job, name="echo", unit="items/s") == 2.5
    assert value(samples, "fallow_job_loss", job=assignment.job, name="echo") == 0.5
    assert value(samples, "fallow_events_total", kind="submitted") == 1

    await agent.say(AgentMessage(reclaim=agent_pb2.ReclaimNotice(epoch=lease.epoch, deadline_s=9e9, grace_s=10)))
    await agent.say(AgentMessage(left=agent_pb2.NodeLeft(epoch=lease.epoch, cause="reclaimed", free_s=3.0)))
    await site.hear("forget")
    for _ in range(2):  # a hand-back is counted once, however often it is asked for
        samples = read(registry)
        assert value(samples, "fallow_reclaim_free_seconds_count") == 1
        assert value(samples, "fallow_reclaim_free_seconds_sum") == 3.0
        assert value(samples, "fallow_reclaim_free_seconds_bucket", le="2.0") == 0
        assert value(samples, "fallow_reclaim_free_seconds_bucket", le="5.0") == 1
    uses = {use: value(samples, "fallow_device_seconds_total", site="s1", use=use) for use in ("useful", "idle")}
    rest = sum(value(samples, "fallow_device_seconds_total", site="s1", use=use) for use in ("rescale", "lost"))
    borrowed = value(samples, "fallow_device_seconds_total", site="s1", use="borrowed")
    assert borrowed > 0
    assert abs(borrowed - sum(uses.values()) - rest) < 1e-6
