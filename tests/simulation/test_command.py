"""What `fallow simulate` writes: anyone can recount the JSON from the table of holds, and see it on the page."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pty
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from scheduler.simulation import __main__ as command
from tests.simulation.recount import check_holds, read_timeline, useful_node_s

CURVES = {
    "a": ((1, 10.0), (2, 19.0), (4, 34.0)),
    "b": ((1, 5.0), (2, 9.0), (3, 12.0)),
    "c": ((1, 7.0), (4, 28.0)),
}
IDLE = {
    "n1": [(0.0, 900.0)],
    "n2": [(0.0, 400.0), (450.0, 1000.0)],
    "n3": [(100.0, 1000.0)],
    "n4": [(130.0, 180.0), (300.0, 720.0)],
    "n5": [(500.0, 1000.0)],
}
UP_S, DOWN_S, END_S = 18.0, 12.0, 1000.0


def trace_file(folder: Path) -> Path:
    path = folder / "idle.csv"
    rows = [f"{node},{start_s},{end_s}\n" for node, spans in IDLE.items() for start_s, end_s in spans]
    path.write_text("node,start_s,end_s\n" + "".join(rows))
    return path


def jobs_file(folder: Path, samples: float = 1e9) -> Path:
    path = folder / "jobs.json"
    jobs = [
        {
            "job": name,
            "Jmin": 1,
            "Jmax": curve[-1][0],
            "Pmax": samples,
            "Tcup_s": UP_S,
            "Tcdw_s": DOWN_S,
            "Tsub": f"2021-02-10T20:21:{15 + number}",
            "Ns": [0, *(n for n, _ in curve)],
            "Ps_samples_per_s": [0.0, *(rate for _, rate in curve)],
        }
        for number, (name, curve) in enumerate(CURVES.items())
    ]
    path.write_text(json.dumps(jobs))
    return path


def simulated(folder: Path, *options: str, samples: float = 1e9) -> tuple[dict[str, Any], str, str]:
    """The JSON, the table of holds and the page."""
    out, timeline, report = folder / "out.json", folder / "holds.csv", folder / "page.html"
    written = ["--json", str(out), "--timeline", str(timeline), "--report", str(report)]
    arguments = ["--trace", str(trace_file(folder)), "--jobs", str(jobs_file(folder, samples)), *written, *options]
    assert command.main(arguments) == 0
    return json.loads(out.read_text()), timeline.read_text(), report.read_text(encoding="utf-8")


def recounted(figures: dict[str, Any], timeline: str, up_s: float, down_s: float, warmup_s: float) -> dict[str, float]:
    """Useful node-seconds of each job, from the table alone."""
    holds = read_timeline(timeline)
    check_holds(holds, IDLE)
    return {
        job: useful_node_s([row for row in holds if row[1] == job], curve, up_s, down_s, warmup_s, figures["span_s"][1])
        for job, curve in CURVES.items()
    }


@pytest.mark.parametrize("policy", ["fallow", "bftrainer", "equal"])
@pytest.mark.parametrize(
    ("options", "physics"),
    [
        ([], (UP_S, DOWN_S, 0.0)),
        (["--rescale-up-s", "2", "--rescale-down-s", "5", "--warmup-s", "9"], (2.0, 5.0, 9.0)),
        (["--grace-s", "20"], (UP_S, DOWN_S, 0.0)),
    ],
    ids=["the job file's costs", "other costs", "with notice"],
)
def test_the_figures_can_be_recounted_from_the_table(
    tmp_path: Path, policy: str, options: list[str], physics: tuple[float, float, float]
) -> None:
    figures, timeline, _ = simulated(tmp_path, "--endless", "--parallel", "3", "--policy", policy, *options)
    useful = recounted(figures, timeline, *physics)
    assert {job["id"]: job["useful_node_s"] for job in figures["jobs"]} == pytest.approx(useful)
    assert figures["useful_node_s"] == pytest.approx(sum(useful.values()))
    assert sum(useful.values()) > 0


def test_every_figure_is_there_and_they_agree(tmp_path: Path) -> None:
    figures, timeline, _ = simulated(tmp_path, "--endless", "--parallel", "3")
    hours, jobs = figures["node_hours"], figures["jobs"]
    held_s = _held_s(timeline)
    assert hours["idle"] * 3600 == pytest.approx(sum(end - start for spans in IDLE.values() for start, end in spans))
    assert hours["borrowed"] * 3600 == pytest.approx(held_s)
    assert hours["borrowed"] == pytest.approx(hours["useful"] + hours["lost"])
    assert hours["useful"] * 3600 == pytest.approx(figures["useful_node_s"])
    assert figures["bound_node_s"] == pytest.approx(_bound_s())
    assert figures["harvest"] == pytest.approx(figures["useful_node_s"] / _bound_s())
    assert 0.8 < figures["u"] <= figures["harvest"] * (1 + 1e-9) <= 1, "no fluctuating pool is better than a static one"
    assert sum(figures["losses_node_s"].values()) == pytest.approx(_bound_s() - figures["useful_node_s"])
    assert figures["rescales"] == sum(job["rescales"] for job in jobs) > 3
    stalls = figures["stalls"]
    assert stalls["up"] == sum(job["stalls_up"] for job in jobs) > 0
    assert stalls["down"] == sum(job["stalls_down"] for job in jobs)
    assert stalls["stood_still_s"] == pytest.approx(sum(job["stood_still_s"] for job in jobs))
    assert figures["starvation_s"] == pytest.approx(max(_longest_wait_s(timeline, job) for job in CURVES))
    rates = [job["useful_node_s"] for job in jobs]
    assert figures["fairness"] == pytest.approx(sum(rates) ** 2 / (3 * sum(rate**2 for rate in rates)))
    latency = figures["planner"]
    assert latency["calls"] > 5
    assert 0 < latency["p50_ms"] <= latency["p90_ms"] <= latency["p99_ms"] <= latency["max_ms"]
    assert [of["horizon_s"] for of in figures["calibration"]] == [60, 300, 900, 3600]
    assert all(0 <= of[what] <= 1 for of in figures["calibration"] for what in ("predicted", "observed"))


def _held_s(timeline: str) -> float:
    sign = {"start": -1.0, "stop": 1.0}
    return sum(sign[event] * at_s for at_s, _, _, event in read_timeline(timeline))


def _bound_s() -> float:
    """The best total rate on whatever is idle, by trying all widths, over time."""
    edges = sorted({at_s for spans in IDLE.values() for span in spans for at_s in span})
    total = 0.0
    for start_s, end_s in itertools.pairwise(edges):
        idle = sum(any(a <= start_s < b for a, b in spans) for spans in IDLE.values())
        total += (end_s - start_s) * _best_rate(idle)
    return total


def _best_rate(nodes: int) -> float:
    curves = list(CURVES.values())
    widths = itertools.product(*(range(curve[-1][0] + 1) for curve in curves))
    return max(sum(map(_rate, curves, own)) for own in widths if sum(own) <= nodes)


def _rate(curve: Sequence[tuple[int, float]], width: int) -> float:
    points = [(0, 0.0), *curve]
    (w0, r0), (w1, r1) = next(pair for pair in itertools.pairwise(points) if pair[0][0] <= width <= pair[1][0])
    return (r0 + (r1 - r0) * (width - w0) / (w1 - w0)) / curve[0][1]


def _longest_wait_s(timeline: str, job: str) -> float:
    width, since_s, longest = 0, 0.0, 0.0
    for at_s, _, _, event in (row for row in read_timeline(timeline) if row[1] == job):
        if width == 0:
            longest = max(longest, at_s - since_s)
        width += 1 if event == "start" else -1
        since_s = at_s
    return max(longest, END_S - since_s) if width == 0 else longest


def test_endless_jobs_are_the_first_of_the_file_and_never_finish(tmp_path: Path) -> None:
    endless, timeline, _ = simulated(tmp_path, "--endless", "--parallel", "2", samples=100.0)
    assert [job["id"] for job in endless["jobs"]] == ["a", "b"]
    assert all(job["ended_s"] is None and job["samples"] > 100 for job in endless["jobs"])
    assert {row[1] for row in read_timeline(timeline)} == {"a", "b"}
    ended, _, _ = simulated(tmp_path, "--parallel", "2", samples=100.0)
    assert [job["samples"] for job in ended["jobs"]] == pytest.approx([100.0] * 3)
    assert all(job["ended_s"] is not None for job in ended["jobs"])


def test_a_node_is_used_to_its_last_second_without_notice_and_left_in_time_with_it(tmp_path: Path) -> None:
    _, timeline, _ = simulated(tmp_path, "--endless", "--parallel", "3")
    assert {at_s for at_s, _, node, event in read_timeline(timeline) if (node, event) == ("n1", "stop")} == {900.0}
    _, timeline, _ = simulated(tmp_path, "--endless", "--parallel", "3", "--grace-s", "20")
    assert {at_s for at_s, _, node, event in read_timeline(timeline) if (node, event) == ("n1", "stop")} == {880.0}


# --- the page --------------------------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Headings, and what of pictures, legends and tables stands under each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.parts: dict[str, list[str]] = defaultdict(list)
        self.text: dict[str, str] = defaultdict(str)
        self._heading, self._in_heading = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h1", "h2"):
            self._heading, self._in_heading = "", True
        else:
            self.parts[self._heading].append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h1", "h2"):
            self._in_heading = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self._heading += data
        else:
            self.text[self._heading] += data + " "


def test_the_page_draws_nodes_losses_and_widths(tmp_path: Path) -> None:
    figures, _, text = simulated(tmp_path, "--endless", "--parallel", "3")
    page = _Page(text)
    for heading in ("Nodes lent and used", "Widths of the jobs"):
        assert "svg" in page.parts[heading]
        assert page.parts[heading].count("polygon") >= 2, "an area for each series"
    assert {"lent", "used"} <= set(re.findall(r"\w+", page.text["Nodes lent and used"]))
    assert set(CURVES) <= set(page.text["Widths of the jobs"].split())
    losses = page.text["Where the work of the frictionless bound went"]
    for hours in (figures["node_hours"]["useful"], figures["losses_node_s"]["stalls_up"] / 3600):
        assert f"{hours:,.1f}" in losses
    assert f"{figures['harvest']:.4f}" in text
    assert page.parts["Was the forecast right?"].count("tr") == 5
    assert page.parts["Jobs"].count("tr") == 4
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import""", text), "it loads nothing from anywhere"


# --- the command -----------------------------------------------------------------------------------------------


def test_a_terminal_sees_how_far_it_is_and_a_file_does_not(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "scheduler.simulation", "--trace", str(trace_file(tmp_path)), "--endless"]
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=theirs, env=env) as process:
        os.close(theirs)
        seen = _all_of(ours)
    assert process.returncode == 0
    assert "fallow on idle.csv" in seen
    assert "━" in seen
    quiet = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert quiet.stderr == ""


def test_fallow_simulate_is_this_command(tmp_path: Path) -> None:
    fallow = [sys.executable, "-m", "fallow", "simulate", "--trace"]
    done = subprocess.run([*fallow, str(trace_file(tmp_path)), "--endless"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fallow on idle.csv: harvest 0.9")
    bad = tmp_path / "bad.csv"
    bad.write_text("node,start_s,end_s\nn,5,1\n")
    refused = subprocess.run([*fallow, str(bad)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("fallow simulate: bad.csv, line 2: ")


def _all_of(terminal: int) -> str:
    read = b""
    try:
        while piece := os.read(terminal, 4096):
            read += piece
    except OSError:  # the other side is closed
        pass
    os.close(terminal)
    return read.decode()


def test_very_many_nodes_are_worth_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "FEW_NODES", 4)
    simulated(tmp_path, "--endless")
    assert "note: 5 nodes; expect about 2 GB of memory a million" in capsys.readouterr().err


def test_what_was_left_out_is_said_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, jobs = tmp_path / "idle.csv", jobs_file(tmp_path)
    trace.write_text("node,start_s,end_s,rack\nn1,0,500,r1\nn2,7,7,r1\nn3,9,9,r1\n")
    rows = json.loads(jobs.read_text())
    rows[1] |= {"Ns": [0], "Ps_samples_per_s": [0.0]}
    jobs.write_bytes(gzip.compress(json.dumps(rows).encode()))
    assert command.main(["--trace", str(trace), "--jobs", str(jobs)]) == 0
    said = capsys.readouterr().err
    assert "note: 1 column rack" in said
    assert "note: 2 intervals of no length" in said
    assert "note: 1 jobs without a curve" in said


GOOD = {"job": "x", "Jmin": 1, "Jmax": 2, "Pmax": 1.0, "Tcup_s": 1.0, "Tcdw_s": 1.0, "Tsub": "2021-02-10T20:21:15"}
GOOD |= {"Ns": [1, 2], "Ps_samples_per_s": [1.0, 2.0]}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("jobs.json", "[{", "jobs.json, line 1: not JSON"),
        ("jobs.json", "{}", "jobs.json, line 1: a job mix is a JSON list"),
        ("jobs.json", "[]", "jobs.json: no job in it has a throughput curve"),
        ("jobs.json", json.dumps([GOOD, {**GOOD, "Jmin": 3}]), "jobs.json: job 2 of the list: .*no range of widths"),
        ("jobs.json", json.dumps([{**GOOD, "Tcup_s": -1}]), "jobs.json: job 1 of the list: .*negative cost"),
        ("jobs.json", json.dumps([{**GOOD, "Ns": [1]}]), "jobs.json: job 1 of the list"),
        ("jobs.json", json.dumps([{**GOOD, "Tsub": "soon"}]), "jobs.json: job 1 of the list: .*soon"),
        ("jobs.yaml", "kind: train\nname: [\n", r"jobs.yaml, line \d: not YAML"),
        ("jobs.yaml", "kind: cook\nname: x\n", "jobs.yaml: job 1 of the file"),
        ("jobs.yaml", "", "jobs.yaml: "),
    ],
)
def test_bad_job_files_are_refused_by_file_and_place(
    tmp_path: Path, name: str, text: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert command.main(["--trace", str(trace_file(tmp_path)), "--jobs", str(path)]) == 1
    assert re.search(problem, capsys.readouterr().err)


def test_a_cut_gzip_of_jobs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "jobs.json.gz"
    path.write_bytes(gzip.compress(jobs_file(tmp_path).read_bytes())[:-20])
    assert command.main(["--trace", str(trace_file(tmp_path)), "--jobs", str(path)]) == 1
    assert "jobs.json.gz: the gzip file is cut or damaged" in capsys.readouterr().err


def test_a_part_of_a_trace_in_which_nothing_is_idle_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--trace", str(trace_file(tmp_path)), "--from-s", "5000"]) == 1
    assert "idle.csv: no node is idle in this part of it" in capsys.readouterr().err
