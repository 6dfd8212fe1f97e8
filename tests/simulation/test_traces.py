"""Every trace format gives the same kind of trace, and what is wrong with a file is said by file and line."""

from __future__ import annotations

import gzip
import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.simulation.job_mix import read_job_mix
from scheduler.simulation.traces import BadTrace, IdleInterval, Trace, read_trace
from scheduler.simulation.traces.sacct import expand_hostlist
from scheduler.store.sql_store import SqlStore
from tests.scheduler.world import World

SHARED = Path(__file__).parents[3] / "shared" / "data"


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def assert_tidy(trace: Trace) -> None:
    assert list(trace.intervals) == sorted(trace.intervals)
    by_node = defaultdict(list)
    for interval in trace.intervals:
        assert interval.start_s < interval.end_s
        by_node[interval.node].append(interval)
    for spans in by_node.values():
        assert all(a.end_s < b.start_s for a, b in pairwise(spans))


def test_idle_table_is_sorted_and_touching_intervals_become_one(tmp_path: Path) -> None:
    path = written(tmp_path, "node,start_s,end_s\nb,5,9\na,10,20\na,0,10\n")
    trace = read_trace(path)
    assert trace.intervals == (IdleInterval(0, "a", 20), IdleInterval(5, "b", 9))
    assert trace.idle_node_s == 24
    assert trace.between(8, 12).intervals == (IdleInterval(8, "a", 12), IdleInterval(8, "b", 9))


def test_unknown_columns_are_left_out_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "rack,node,end_s,start_s\nr1,a,4,1\n")
    trace = read_trace(path)
    assert trace.intervals == (IdleInterval(1, "a", 4),)
    assert trace.left_out == (("column rack", 1),)


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("node,start_s,end_s\na,0,10\na,5,12\n", 3, "overlap"),
        ("node,start_s,end_s\na,-1,10\n", 2, "negative"),
        ("node,start_s,end_s\na,10,1\n", 2, "before its start"),
        ("node,start_s,end_s\na,x,1\n", 2, "not a number"),
        ("node,start_s,end_s\na,nan,1\n", 2, "not a finite"),
        ("node,start_s,end_s\na,1,inf\n", 2, "not a finite"),
        ("node,start_s,end_s\na,1\n", 2, "cells"),
        ("node,start_s\na,1\n", 1, "end_s"),
        ("hello\n", 1, "not a trace"),
        ("; MaxNodes: 4\n1 2 3\n", 2, "fields"),
        ("JobID|Start|End|NodeList\n1|yesterday|2024-01-01T00:00:00|n1\n", 2, "not a time"),
        ("JobID|Start|End|NodeList\n1|2024-01-01T00:00:00|2024-01-01T00:01:00|n[a-b]\n", 2, "not a list of nodes"),
        ("JobID|Start|NodeList\n", 1, "column End is missing"),
        ("JobID|Start|End|NodeList\n1|x\n", 2, "2 cells where the header has 4"),
        ("JobID|Start|End|NodeList\n1|2024-01-01T00:01:00|2024-01-01T00:00:00|n1\n", 2, "before it starts"),
        (f"; MaxNodes: 4\n1 -5 0 9 1 {'-1 ' * 13}\n", 2, "negative time"),
        (f"; MaxNodes: 4\n1 x 0 9 1 {'-1 ' * 13}\n", 2, "not a number"),
        ('{"kind": "lease_opened"}\n', 1, "event log"),
        ('{"kind": "lease_opened", "at_s": 1, "node": "a"}\nnonsense\n', 2, "event log"),
    ],
)
def test_bad_traces_are_refused_by_file_and_line(tmp_path: Path, text: str, line: int, problem: str) -> None:
    with pytest.raises(BadTrace, match=rf"trace\.csv, line {line}: .*{problem}"):
        read_trace(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "the file is empty"),
        (f"; MaxNodes: many\n1 0 0 9 1 {'-1 ' * 13}\n", "MaxNodes in its header is not a number: 'many'"),
        (f"1 0 0 -1 1 {'-1 ' * 13}\n", "no job in it ever ran"),
        ("JobID|Start|End|NodeList\n1|Unknown|Unknown|None assigned\n", "no job in it held a node"),
        ("JobID|Start|End|NodeList\n1|2024-01-01T00:00:00|2024-01-01T00:01:00|n1\n", "no node is ever idle"),
        ('{"kind": "tick", "at_s": 1.0}\n', "no lease was opened in it"),
    ],
)
def test_traces_of_which_nothing_can_be_made_are_refused_by_file(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(BadTrace, match=rf"trace\.csv: .*{problem}"):
        read_trace(written(tmp_path, text))


def test_what_is_no_text_names_the_line_where_it_stops_to_be(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"node,start_s,end_s\n" + b"a,0,1\n" * 3000 + b"b\xff,0,1\n")
    with pytest.raises(BadTrace, match=r"trace\.csv, line \d+: not UTF-8 text"):
        read_trace(path)


def test_a_cut_gzip_names_the_line_where_it_ends(tmp_path: Path) -> None:
    rows = "".join(f"n{i},{i},{i + 7}\n" for i in range(20_000))
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(gzip.compress(("node,start_s,end_s\n" + rows).encode())[:-2000])
    with pytest.raises(BadTrace, match=r"cut\.csv\.gz, line \d+: the gzip file is cut"):
        read_trace(path)


@given(
    jobs=st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 50), st.integers(1, 200), st.integers(1, 8)),
        min_size=1,
        max_size=40,
    )
)
def test_swf_idle_and_used_time_fill_the_machine(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[tuple[int, ...]]
) -> None:
    lines = ["; MaxNodes: 400"]
    for number, (submit, wait, run, size) in enumerate(sorted(jobs), 1):
        lines.append(f"{number} {submit} {wait} {run} {size} -1 -1 {size} -1 -1 1 1 1 -1 -1 -1 -1 -1")
    trace = read_trace(written(tmp_path_factory.mktemp("swf"), "\n".join(lines), "log.swf"))
    assert_tidy(trace)
    first = min(s + w for s, w, _, _ in jobs)
    last = max(s + w + r for s, w, r, _ in jobs)
    used = sum(r * n for _, _, r, n in jobs)
    assert trace.idle_node_s == pytest.approx(400 * (last - first) - used)


def test_sacct_output_gives_what_no_allocation_holds(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "JobID|Start|End|NodeList|State\n"
        "1|2024-01-01T00:00:00|2024-01-01T00:10:00|n[1-2]|COMPLETED\n"
        "1.batch|2024-01-01T00:00:00|2024-01-01T00:10:00|n1|COMPLETED\n"
        "2|2024-01-01T00:15:00|2024-01-01T00:20:00|n1|CANCELLED by 5\n"
        "3|Unknown|Unknown|None assigned|PENDING\n"
        "4|2024-01-01T00:16:00|Unknown|n2|RUNNING\n",
        "sacct.txt",
    )
    trace = read_trace(path)
    assert trace.intervals == (IdleInterval(600, "n1", 900), IdleInterval(600, "n2", 1200))
    assert trace.left_out == (("job steps", 1), ("jobs that never started", 1), ("jobs that still run", 1))


def test_hostlists_expand_as_slurm_writes_them() -> None:
    assert expand_hostlist("n[1-3,07],login") == ["n1", "n2", "n3", "n07", "login"]
    assert expand_hostlist("r[1-2]n[08-10]") == ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]


def test_leases_of_our_own_event_log_are_its_intervals(tmp_path: Path) -> None:
    rows = [
        {"kind": "lease_ended", "at_s": 90.0, "node": "z"},
        {"kind": "lease_opened", "at_s": 100.0, "node": "a"},
        {"kind": "job_submitted", "at_s": 110.0},
        {"kind": "lease_opened", "at_s": 120.0, "node": "b"},
        {"kind": "lease_ended", "at_s": 150.0, "node": "a"},
        {"kind": "tick", "at_s": 190.0},
    ]
    trace = read_trace(written(tmp_path, "\n".join(json.dumps(row) for row in rows), "events.jsonl"))
    assert trace.intervals == (IdleInterval(10, "a", 60), IdleInterval(30, "b", 100))
    assert trace.left_out == (("ends of leases that began before the log", 1),)


def test_a_schedulers_own_database_is_a_trace_while_it_runs(tmp_path: Path) -> None:
    """Its leases, as they were lent, by the log of a real store that is still open."""
    path = tmp_path / "fallow.db"
    store, world = SqlStore(f"sqlite:///{path}"), World()
    world.store = world.loop._store = store  # type: ignore[assignment]
    world.add_site()
    world.run(10.0)
    first, second = world.add_nodes(2)
    world.run(100.0)
    world.twin.owner_reclaims(first, 5.0)
    world.run(100.0)
    began_s, leases = store.log_after(0, 1)[0].at_s, (world.inventory.leases.values())
    trace = read_trace(path)
    last_s = store.log_tail(1)[0].at_s
    assert {(i.node, i.start_s, i.end_s) for i in trace.intervals} == {
        (of.key.node, of.started_s - began_s, (last_s if of.ended_s is None else of.ended_s) - began_s) for of in leases
    }
    assert {i.node for i in trace.intervals} == {first, second}
    store.close()


def test_another_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE holidays (day)")
    with pytest.raises(BadTrace, match=r"other\.db: not the database of a Fallow scheduler \(no such table: log\)"):
        read_trace(path)


def test_job_mix_leaves_out_jobs_without_a_curve_and_counts_them(tmp_path: Path) -> None:
    job = {
        "job": "J1",
        "Jmin": 1,
        "Jmax": 4,
        "Pmax": 100.0,
        "Tcup_s": 18.0,
        "Tcdw_s": 12.0,
        "Tsub": "2021-02-10T20:21:15",
        "Ns": [0, 1, 2, 4],
        "Ps_samples_per_s": [0.0, 10.0, 19.0, 36.0],
    }
    later = {**job, "job": "J2", "Tsub": "2021-02-10T20:22:15"}
    path = written(tmp_path, json.dumps([job, {**job, "Ns": [0], "Ps_samples_per_s": [0.0]}, later]), "jobs.json")
    jobs, left_out = read_job_mix(path)
    assert [j.id for j in jobs] == ["J1", "J2"]
    assert jobs[0].curve == ((1, 10.0), (2, 19.0), (4, 36.0))
    assert jobs[0].one_node_rate == 10.0
    assert jobs[1].submitted_s == 60.0
    assert left_out == (("jobs without a curve", 1),)
    with pytest.raises(BadTrace, match="job 1 of the list"):
        read_job_mix(written(tmp_path, json.dumps([{"job": "x"}]), "bad.json"))


@pytest.mark.skipif(not SHARED.exists(), reason="the recorded traces are not on this machine (../shared/data)")
def test_recorded_traces_read_as_their_description_says() -> None:
    prometheus = read_trace(SHARED / "traces" / "prometheus-2022-03-17.idle.csv.gz")
    assert len(prometheus.intervals) == 1599
    assert_tidy(prometheus)
