"""Prometheus metrics, read from the inventory when they are asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from scheduler.control_loop import ControlLoop
from scheduler.domain.cluster import LeaseState, NodeState
from scheduler.domain.jobs import JobState
from scheduler.rpc.gate import Gate
from scheduler.rpc.log_feed import LogFeed

FREE_BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0)
USES = ("borrowed", "useful", "rescale", "idle", "lost")


class InventoryCollector(Collector):
    """What one scheduler knows, at the moment of asking."""

    def __init__(self, loop: ControlLoop, gate: Gate, logs: LogFeed, events: Mapping[str, int]) -> None:
        """`events` counts rows of the event log by kind."""
        self._loop = loop
        self._gate = gate
        self._logs = logs
        self._events = events
        reclaims = loop.inventory.reclaims
        self._last_reclaim = reclaims[-1] if reclaims else None
        self._free_s: Counter[float] = Counter()
        self._free_sum_s = 0.0

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: names do not depend on what is there."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield self._nodes()
        yield self._leases()
        yield from self._books()
        yield from self._jobs()
        yield self._reclaims()
        yield from self._forecasts()
        yield from self._process()

    def _nodes(self) -> Metric:
        metric = GaugeMetricFamily("fallow_nodes", "Nodes by site and state.", labels=("site", "state"))
        nodes = Counter((node.site, node.state) for node in self._loop.inventory.nodes.values())
        for site in sorted({site for site, _ in nodes}):
            for state in NodeState:
                metric.add_metric((site, state.value), nodes[site, state])
        return metric

    def _leases(self) -> Metric:
        metric = GaugeMetricFamily("fallow_leases", "Live leases by site and state.", labels=("site", "state"))
        leases = Counter((lease.site, lease.state) for lease in self._loop.inventory.leases.values() if lease.is_live)
        for site in sorted({site for site, _ in leases}):
            for state in LeaseState:
                if state is not LeaseState.ENDED:
                    metric.add_metric((site, state.value), leases[site, state])
        return metric

    def _books(self) -> Iterable[Metric]:
        """By site and by live job: what ended is in the site's sum, and in `fallow usage`."""
        sites: Counter[tuple[str, str]] = Counter()
        jobs: Counter[tuple[str, str]] = Counter()
        energy_mj: Counter[str] = Counter()
        for account in self._loop.inventory.accounts.values():
            for use in USES:
                sites[account.key.site, use] += getattr(account, f"{use}_us")
                jobs[account.key.job, use] += getattr(account, f"{use}_us")
            energy_mj[account.key.site] += account.energy_mj
        live = {job.id for job in self._loop.inventory.jobs.values() if job.state.is_live}
        yield _device_seconds("fallow_device_seconds", "site", sites)
        yield _device_seconds("fallow_job_device_seconds", "job", {k: v for k, v in jobs.items() if k[0] in live})
        energy = CounterMetricFamily("fallow_energy_joules", "Energy of borrowed devices.", labels=("site",))
        for site in sorted(energy_mj):
            energy.add_metric((site,), energy_mj[site] / 1e3)
        yield energy

    def _jobs(self) -> Iterable[Metric]:
        jobs = self._loop.inventory.jobs.values()
        states = GaugeMetricFamily("fallow_jobs", "Jobs by kind and state.", labels=("kind", "state"))
        for (kind, state), number in sorted(Counter((job.kind, job.state) for job in jobs).items()):
            states.add_metric((kind.value, state.value), number)
        yield states
        width = GaugeMetricFamily("fallow_job_width", "Workers of each live job.", labels=("job", "name", "state"))
        rate = GaugeMetricFamily("fallow_job_rate", "Work a second of each live job.", labels=("job", "name", "unit"))
        loss = GaugeMetricFamily("fallow_job_loss", "Loss of each live train job.", labels=("job", "name"))
        for job in sorted((job for job in jobs if job.state.is_live), key=lambda job: job.id):
            width.add_metric((job.id, job.name, JobState(job.state).value), job.width)
            rate.add_metric((job.id, job.name, job.progress.rate_unit), job.progress.rate)
            if job.progress.loss:
                loss.add_metric((job.id, job.name), job.progress.loss)
        yield from (width, rate, loss)
        waiting = GaugeMetricFamily("fallow_jobs_unplaced", "Jobs not at full width, by reason.", labels=("code",))
        for code, number in sorted(Counter(reason.code for reason in self._loop.unplaced.values()).items()):
            waiting.add_metric((code,), number)
        yield waiting

    def _forecasts(self) -> Iterable[Metric]:
        """Is the forecast right? The two should be near each other; `asked` says how much that is worth."""
        labels = ("site", "seconds")
        predicted = GaugeMetricFamily("fallow_survival_predicted", "Leases that were to last so long.", labels=labels)
        observed = GaugeMetricFamily("fallow_survival_observed", "Of the same leases, those that did.", labels=labels)
        asked = GaugeMetricFamily("fallow_survival_asked", "Leases that both are shares of.", labels=labels)
        for site in sorted(self._loop.inventory.sites):
            for of in self._loop.inventory.calibration(site):
                key = site, f"{of.horizon_s:g}"
                predicted.add_metric(key, of.predicted)
                observed.add_metric(key, of.observed)
                asked.add_metric(key, of.asked)
        yield from (predicted, observed, asked)

    def _reclaims(self) -> Metric:
        for record in self._new_reclaims():
            self._free_s[record] += 1
            self._free_sum_s += record
        buckets = [
            (str(bound), float(sum(n for free_s, n in self._free_s.items() if free_s <= bound)))
            for bound in FREE_BUCKETS_S
        ]
        buckets.append(("+Inf", float(self._free_s.total())))
        return HistogramMetricFamily(
            "fallow_reclaim_free_seconds",
            "From an owner's demand to the node being free, as its agent measured it.",
            buckets=buckets,
            sum_value=self._free_sum_s,
        )

    def _new_reclaims(self) -> list[float]:
        """Of the hand-backs since the last call; the inventory keeps only the newest ones of all."""
        found: list[float] = []
        reclaims = self._loop.inventory.reclaims
        for record in reversed(reclaims):
            if record is self._last_reclaim:
                break
            found.append(record.free_s)
        self._last_reclaim = reclaims[-1] if reclaims else None
        return found

    def _process(self) -> Iterable[Metric]:
        calls = CounterMetricFamily("fallow_grpc_calls", "Finished calls.", labels=("method", "status"))
        for (method, status), number in sorted(self._gate.calls.items()):
            calls.add_metric((method, status), number)
        yield calls
        events = CounterMetricFamily("fallow_events", "Rows of the event log by kind.", labels=("kind",))
        for kind in sorted(self._events):
            events.add_metric((kind,), self._events[kind])
        yield events
        yield CounterMetricFamily(
            "fallow_log_lines_dropped", "Job log lines lost to a slow database.", self._logs.dropped
        )


def _device_seconds(name: str, label: str, sums_us: Mapping[tuple[str, str], int]) -> Metric:
    help_text = f"Borrowed device time by {label}: borrowed = useful + rescale + idle + lost."
    metric = CounterMetricFamily(name, help_text, labels=(label, "use"))
    for key, use in sorted(sums_us):
        metric.add_metric((key, use), sums_us[key, use] / 1e6)
    return metric
