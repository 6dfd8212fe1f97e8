"""A replay obeys the physical clock: whoever recounts it from the timeline gets the same figures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler.planning.plan import Replanner
from scheduler.simulation import policies
from scheduler.simulation.__main__ import main
from scheduler.simulation.job_clock import Physics
from scheduler.simulation.job_mix import MixJob
from scheduler.simulation.outcome import outcome_of
from scheduler.simulation.replay import Replay, Replayer, Setting
from scheduler.simulation.timeline import rows
from scheduler.simulation.traces import IdleInterval, Trace, read_trace
from tests.simulation.recount import check_holds, read_timeline, useful_node_s

SHARED = Path(__file__).parents[3] / "shared" / "data"
CURVE = ((1, 10.0), (2, 19.0), (4, 34.0), (8, 60.0))


def job(name: str = "a", **changes: object) -> MixJob:
    fields: dict[str, object] = {
        "min_width": 1,
        "max_width": 8,
        "curve": CURVE,
        "samples": None,
        "rescale_up_s": 3.0,
        "rescale_down_s": 2.0,
        "submitted_s": 0.0,
    }
    return MixJob(name, **{**fields, **changes})  # type: ignore[arg-type]


def trace_of(*spans: tuple[str, float, float]) -> Trace:
    return Trace(tuple(sorted(IdleInterval(start, node, end) for node, start, end in spans)))


def replay(trace: Trace, jobs: list[MixJob], policy: str = "fallow", **setting: object) -> Replay:
    planner = {
        "fallow": Replanner,
        "equal": policies.equal,
        "bftrainer": lambda: policies.bftrainer({j.id: j for j in jobs}, 300.0),
    }[policy]()
    replayer = Replayer(trace, jobs, planner, Setting(**setting))  # type: ignore[arg-type]
    done = replayer.run()
    replayer.inventory.check()
    return done


def assert_recounts(done: Replay, physics: Physics) -> None:
    """The timeline, recounted, gives the useful node-seconds of every job."""
    timeline = list(rows(done.jobs))
    idle = defaultdict(list)
    for interval in done.trace.intervals:
        idle[interval.node].append((interval.start_s, interval.end_s))
    check_holds(timeline, idle)
    for record in done.jobs:
        up_s = record.job.rescale_up_s if physics.up_s is None else physics.up_s
        down_s = record.job.rescale_down_s if physics.down_s is None else physics.down_s
        own = [row for row in timeline if row[1] == record.job.id]
        recounted = useful_node_s(own, record.job.curve, up_s, down_s, physics.warmup_s, done.end_s)
        assert record.clock.tally.useful_s == pytest.approx(recounted, rel=1e-9, abs=1e-6), record.job.id


SPANS = st.lists(
    st.tuples(st.sampled_from("nopqrst"), st.integers(0, 300), st.integers(1, 120)), min_size=1, max_size=30
)


@given(
    spans=SPANS,
    policy=st.sampled_from(["fallow", "equal", "bftrainer"]),
    warmup_s=st.sampled_from([0.0, 4.0]),
    grace_s=st.sampled_from([0.0, 7.0]),
    parallel=st.integers(1, 3),
    samples=st.sampled_from([None, 900.0]),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_replay_can_be_recounted(
    spans: list[tuple[str, int, int]],
    policy: str,
    warmup_s: float,
    grace_s: float,
    parallel: int,
    samples: float | None,
) -> None:
    free_s: dict[str, int] = defaultdict(int)
    apart = []
    for node, gap, length in spans:
        start = free_s[node] + 1 + gap % 60
        apart.append((node, float(start), float(start + length)))
        free_s[node] = start + length
    jobs = [job(name, samples=samples, max_width=5, submitted_s=20.0 * i) for i, name in enumerate("abc")]
    physics = Physics(warmup_s=warmup_s)
    setting = {"parallel": parallel, "grace_s": grace_s, "physics": physics}
    done = replay(trace_of(*apart), jobs, policy, **setting)
    assert_recounts(done, physics)
    outcome = outcome_of(done)
    assert outcome.total.useful_s <= outcome.bound.useful_s * (1 + 1e-9)
    assert outcome.total.held_s <= outcome.bound.idle_s * (1 + 1e-9)
    assert outcome.u <= 1 + 1e-9
    for record in done.jobs:
        if record.ended_s is not None:
            assert record.clock.tally.useful_s * record.job.one_node_rate == pytest.approx(samples)


def test_a_start_a_growth_and_a_loss_each_stall_the_job() -> None:
    done = replay(trace_of(("n", 0, 100), ("o", 50, 80)), [job()], endless=True)
    tally = done.jobs[0].clock.tally
    assert (tally.stalls_up, tally.stalls_down) == (2, 1)
    worked = (50 - 3) * 1.0 + (30 - 3) * 1.9 + (20 - 2) * 1.0
    assert tally.useful_s == pytest.approx(worked)
    assert tally.stood_still_s == pytest.approx(3 + 3 + 2)


def test_a_change_during_a_stall_replaces_it() -> None:
    done = replay(trace_of(("n", 0, 100), ("o", 2, 100)), [job()], "bftrainer", endless=True)
    assert done.jobs[0].clock.tally.useful_s == pytest.approx((100 - 5) * 1.9)


def test_changes_at_one_instant_count_once() -> None:
    done = replay(trace_of(("n", 0, 50), ("o", 0, 100), ("p", 50, 100)), [job()], endless=True)
    tally = done.jobs[0].clock.tally
    assert tally.useful_s == pytest.approx((50 - 3) * 1.9 + (50 - 3) * 1.9)
    assert (tally.stalls_up, tally.stalls_down) == (2, 0)


def test_a_new_node_warms_up_beside_the_running_job() -> None:
    setting = {"endless": True, "physics": Physics(warmup_s=10.0)}
    done = replay(trace_of(("n", 0, 100), ("o", 40, 90)), [job()], **setting)
    worked = (50 - 10 - 3) * 1.0 + (40 - 3) * 1.9 + (10 - 2) * 1.0
    assert done.jobs[0].clock.tally.useful_s == pytest.approx(worked)
    assert done.jobs[0].clock.tally.warming_s == pytest.approx(20)


def test_jobs_queue_beyond_what_may_run_at_a_time() -> None:
    jobs = [job("a", samples=200.0), job("b", samples=200.0)]
    done = replay(trace_of(("n", 0, 500)), jobs, parallel=1)
    first, second = done.jobs
    assert first.ended_s == pytest.approx(23.0)
    assert (second.arrived_s, second.admitted_s, second.ended_s) == pytest.approx((0.0, 23.0, 46.0))


def test_u_is_of_the_time_in_which_there_was_work_to_do() -> None:
    """A job that is done early does not have less, or more, to show for what is idle afterwards."""
    early, late = (trace_of(*[(f"n{i}", 0, at_s) for i in range(8)], ("n8", at_s, 10_000)) for at_s in (100, 1000))
    few, many = (outcome_of(replay(trace, [job(samples=2000.0)])).u for trace in (early, late))
    assert 0.8 < few == many <= 1.0


def test_u_counts_nodes_that_are_too_few_for_any_job_as_they_can_be_used_together() -> None:
    wide = job(min_width=4, curve=((4, 40.0), (8, 80.0)))
    spans = [(f"n{i}", 0.0, 500.0) for i in range(4)]
    outcome = outcome_of(replay(trace_of(*spans, ("o", 500.0, 1000.0)), [wide], endless=True))
    assert outcome.u == pytest.approx((500 - 3) * 4 / (1000 * 2.5))


@pytest.mark.parametrize("policy", ["fallow", "bftrainer", "equal"])
def test_policies_run_through_the_same_loop(policy: str) -> None:
    spans = [(f"n{i}", 10.0 * i, 400.0 + 7 * i) for i in range(12)]
    done = replay(trace_of(*spans), [job("a"), job("b")], policy, endless=True)
    assert_recounts(done, Physics())
    assert outcome_of(done).harvest > 0.8


@given(nodes=st.integers(1, 6), waiting=st.integers(1, 9), policy=st.sampled_from(["fallow", "equal", "bftrainer"]))
@settings(max_examples=20, deadline=None)
def test_the_planner_comes_to_rest_at_every_instant(nodes: int, waiting: int, policy: str) -> None:
    """More jobs than nodes, all of them new: who was let in is not sent away again at once."""
    spans = [(f"n{i}", 40.0 * (i % 3), 700.0 + 31 * i) for i in range(nodes)]
    jobs = [job(f"j{i}", max_width=3, samples=None if i % 2 else 900.0) for i in range(waiting)]
    assert replay(trace_of(*spans), jobs, policy, parallel=waiting).unsettled == 0


def test_same_input_same_result() -> None:
    spans = [(f"n{i}", 13.0 * (i % 5), 200.0 + 11 * i) for i in range(12)]
    one, two = (list(rows(replay(trace_of(*spans), [job("a"), job("b")], endless=True).jobs)) for _ in range(2))
    assert one == two


# --- the command -----------------------------------------------------------------------------------------------


def test_the_command_writes_what_it_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "idle.csv"
    trace.write_text("node,start_s,end_s\nn,0,1000\no,100,900\n")
    out, timeline, report = tmp_path / "out.json", tmp_path / "holds.csv", tmp_path / "page.html"
    arguments = ["--trace", str(trace), "--endless", "--parallel", "2", "--json", str(out)]
    assert main([*arguments, "--timeline", str(timeline), "--report", str(report)]) == 0
    figures = json.loads(out.read_text())
    assert 0.9 < figures["harvest"] <= 1.0
    assert figures["node_hours"]["idle"] == pytest.approx(0.5)
    holds = read_timeline(timeline.read_text())
    assert {row[3] for row in holds} == {"start", "stop"}
    assert "<svg" in report.read_text()
    assert "http" not in report.read_text().replace("http://www.w3.org", "")
    assert "harvest" in capsys.readouterr().out


def test_a_bad_trace_is_status_1_and_a_bad_command_line_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "idle.csv"
    trace.write_text("node,start_s,end_s\nn,0,10\nn,5,12\n")
    assert main(["--trace", str(trace)]) == 1
    assert "idle.csv, line 3: two idle intervals of node n overlap" in capsys.readouterr().err
    assert main(["--trace", str(tmp_path / "none.csv")]) == 1
    with pytest.raises(SystemExit) as stopped:
        main(["--trace", str(trace), "--parallel", "0"])
    assert stopped.value.code == 2


def test_job_files_of_fallow_are_a_mix(tmp_path: Path) -> None:
    trace, jobs, out = tmp_path / "idle.csv", tmp_path / "job.yaml", tmp_path / "out.json"
    trace.write_text("node,start_s,end_s\n" + "".join(f"n{i},0,5000\n" for i in range(4)))
    jobs.write_text("kind: train\nname: one\nwidth: {min: 2, max: 4}\ntrain: {output: out, steps: 100}\n")
    assert main(["--trace", str(trace), "--jobs", str(jobs), "--json", str(out)]) == 0
    (one,) = json.loads(out.read_text())["jobs"]
    assert one["samples"] == pytest.approx(1600)
    assert one["ended_s"]


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the recorded traces are not on this machine (../shared/data)")
@pytest.mark.parametrize("policy", ["bftrainer", "fallow"])
def test_recorded_hours_recount_and_harvest_what_is_known(policy: str, tmp_path: Path) -> None:
    """Prometheus, ten ShuffleNet jobs: the published policy reaches 0.95 of the bound (FACTS of the project)."""
    from scheduler.simulation.job_mix import read_job_mix

    mix, _ = read_job_mix(SHARED / "jobs" / "jobs_hps_shufflenet.json.gz")
    trace = read_trace(SHARED / "traces" / "prometheus-2022-03-17.idle.csv.gz").between(0, 6 * 3600)
    done = replay(trace, list(mix[:10]), policy, endless=True)
    assert_recounts(done, Physics())
    assert outcome_of(done).harvest > 0.93
