"""Harvesting a real Slurm cluster of this host while its owner's workload is replayed, beside the same without Fallow.

    python -m bench.slurm --json FILE [--minutes 10] [--work train|task]

Four clusters run side by side on this host, so that all have the same processor to share: three with the owner's
workload alone, one with Fallow as well. Every node is a slurmd; pilots, agents and raylets are real. Eight trainers
on one host saturate it, which eight nodes would not be: with `--work task` the workers wait instead of computing, and
what is measured of pilots, agents and the owner's jobs is not of the host's processor.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.report import Row, argument_parser, publish, row
from bench.slurm_machine import MachineShape, SlurmMachine, why_not
from bench.slurm_owner import OWNER, Logged, OwnersJob, Replay, logged, read_slice
from bench.warm_up import worker_parts
from fallow.errors import FallowError
from fallow.local_cluster import LocalCluster
from fallow.processes import LEASE_VARIABLE, belonging, exiting_on_sigterm
from fallow.results import JobEvent, Node

NODES, GRACE_S, KILL_WAIT_S = 8, 10, 10
FACTOR, LOAD = 20.0, 0.7
QUIET_RUNS = 3
SITE = "local"
_LOOK_S = 0.25
_TAIL_S = 15.0


@dataclass(frozen=True, slots=True)
class Look:
    """What the scheduler said of the nodes at one time."""

    at_s: float
    nodes: tuple[Node, ...]


@dataclass
class Seen:
    """What was seen while Fallow harvested."""

    looks: list[Look] = field(default_factory=list)
    leftovers: list[str] = field(default_factory=list)
    first_steps: list[JobEvent] = field(default_factory=list)
    steps_lost: int = 0
    began_s: float = 0.0
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Run:
    """One replay that is over."""

    waits_s: dict[int, float]
    log: list[Logged]


def main() -> int:
    """Run it; 0 if every goal is reached."""
    options = _options()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return 2
    seconds = options.minutes * 60
    jobs = read_slice(options.log, NODES, seconds, FACTOR, LOAD)
    with exiting_on_sigterm(), tempfile.TemporaryDirectory(prefix="fwb") as name:
        folder = Path(name)
        folder.chmod(0o755)
        quiet, harvested, seen = _side_by_side(folder, jobs, seconds, options.work)
    rows = [*_owner_rows(jobs, quiet, harvested), *_harvest_rows(harvested, seen, options.work)]
    rows += _hand_back_rows(seen)
    publish(f"slurm, {options.work}", rows, options.json)
    return 0 if all(one.holds is not False for one in rows) else 1


def _options() -> argparse.Namespace:
    parser = argument_parser("Harvest a real Slurm cluster of this host, beside the same workload without Fallow.")
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the replay (default 10)")
    there = Path(__file__).resolve().parents[2] / "shared" / "data" / "traces" / "KTH-SP2-1996-2.swf.gz"
    parser.add_argument("--work", choices=("train", "task"), default="train", help="what is harvested with")
    parser.add_argument("--log", type=Path, default=there, help="log of the owner's jobs (SWF, gzip)")
    options = parser.parse_args()
    if not options.log.exists():
        parser.error(f"--log {options.log}: there is no such file")
    return options


# --- the runs --------------------------------------------------------------------------------------------------------


def _side_by_side(folder: Path, jobs: Sequence[OwnersJob], seconds: float, work: str) -> tuple[list[Run], Run, Seen]:
    names = [*(f"q{number}" for number in range(QUIET_RUNS)), "f"]
    shapes = {name: _shape(folder / name) for name in names}
    with contextlib.ExitStack() as stack:
        machines = {name: stack.enter_context(SlurmMachine(folder / name, shape)) for name, shape in shapes.items()}
        harvest = stack.enter_context(Harvest(machines["f"], folder, work))
        replays = {name: Replay(machine, jobs, folder / name / "starts") for name, machine in machines.items()}
        harvest.begin()
        threads = [threading.Thread(target=replay.run, args=(seconds,)) for replay in replays.values()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        harvest.end()
        for machine in machines.values():
            machine.run("scancel", "--user=root")
        time.sleep(3)
        runs = {name: Run(replays[name].waits_s(), logged(folder / name / "jobcomp")) for name in names}
    return [runs[name] for name in names[:-1]], runs["f"], harvest.seen


def _shape(folder: Path) -> MachineShape:
    lines = ("JobCompType=jobcomp/filetxt", f"JobCompLoc={folder}/jobcomp")
    return MachineShape(NODES, 2, GRACE_S, KILL_WAIT_S, lines=lines)


class Harvest:
    """Fallow on one of the clusters: scheduler, site, `fallow pilots`, one job, and a witness."""

    def __init__(self, machine: SlurmMachine, folder: Path, work: str) -> None:
        self.machine, self.work, self.seen = machine, work, Seen()
        self.temp, self.home = folder / "t", folder / "h"
        self.temp.mkdir()
        self.fallow = LocalCluster(self.home, nodes=0)
        self._over = threading.Event()
        self._witness = threading.Thread(target=self._watch)
        self._pilots: subprocess.Popen[bytes] | None = None
        self._job = ""

    def __enter__(self) -> Harvest:
        self.fallow.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._pilots:
            self._pilots.terminate()
            self._pilots.wait(60)
        self.fallow.stop()

    def begin(self) -> None:
        """Start pilots and the job, and wait until it trains on all nodes: what is measured is harvesting."""
        config = self.home / "pilots.yaml"
        config.write_text(yaml.safe_dump(self._settings()))
        with (self.home / "pilots.log").open("ab") as log:
            command = [sys.executable, "-m", "agents", "pilots", "--slurm", "--config", str(config)]
            environment = {**os.environ, **self.machine.environment}
            self._pilots = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        spec = _train_spec if self.work == "train" else _task_spec
        self._job = self.fallow.client.submit(spec(self.home / "out")).job
        self.fallow.await_ready_nodes(NODES, 240)
        deadline_s = time.monotonic() + 240
        while self.fallow.client.job(self._job).width < NODES and time.monotonic() < deadline_s:
            time.sleep(0.5)
        self.seen.began_s = time.time()
        self._witness.start()

    def end(self) -> None:
        """End the job; what is left of pilots 15 s later is noted."""
        self.seen.ended_s = time.time()
        self._over.set()
        self._witness.join()
        self.seen.steps_lost = self.fallow.client.job(self._job).steps_lost
        events = self.fallow.client.why(self._job).events
        self.seen.first_steps = [e for e in events if e.kind == "worker_running" and e.at_s > self.seen.began_s]
        self.fallow.client.cancel(self._job)
        deadline_s = time.monotonic() + _TAIL_S
        while time.monotonic() < deadline_s and (self.machine.jobs(f"--name=fallow-{SITE}") or self._left()):
            time.sleep(0.5)
        self.seen.leftovers += self._left()

    def _left(self) -> list[str]:
        files = [str(path) for path in self.temp.iterdir()]
        shared = [name for name in os.listdir("/dev/shm") if name.startswith("plasma")]
        ours = belonging(LEASE_VARIABLE, lambda value: value.startswith(f"{SITE}.n"))
        return files + shared + [f"process {pid}" for pid in ours]

    def _settings(self) -> dict[str, Any]:
        return {
            "site": SITE,
            "scheduler": self.fallow.address,
            "token_file": str(self.home / "tokens" / "site"),
            "agent_token_file": str(self.home / "tokens" / "agent"),
            "dir": str(self.home / "pilots"),
            "place": {"partition": "spare", "environment": {"OMP_NUM_THREADS": "1"}},
            "bag": {"lengths_min": [2, 4, 8, 14, 22], "each": 10},
            "agent": {
                "cores": 1,
                "memory_bytes": 1_000_000_000,
                "address": "127.0.0.1",
                "temp_dir": str(self.temp),
            },
            "quick_s": 2.0,
        }

    def _watch(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(FallowError):
                self.seen.looks.append(Look(time.time(), self.fallow.client.nodes()))
            self._over.wait(_LOOK_S)


def _train_spec(output: Path) -> dict[str, Any]:
    model = {"vocab_size": 320, "hidden_size": 32, "layers": 2, "heads": 2, "experts": 8, "expert_size": 32}
    part = {"model": model, "steps": 10_000_000, "global_batch": 16, "sequence_length": 32, "output": str(output)}
    return {"kind": "train", "name": "harvest", "width": {"min": 1, "max": NODES}, "train": part}


def _task_spec(output: Path) -> dict[str, Any]:
    items = [{"item": number} for number in range(20_000)]
    part = {"command": ["sleep", "1"], "array": items, "output": str(output)}
    return {"kind": "task", "name": "harvest", "width": {"min": 1, "max": NODES}, "task": part}


# --- the figures -----------------------------------------------------------------------------------------------------


def _owner_rows(jobs: Sequence[OwnersJob], quiet: Sequence[Run], harvested: Run) -> Iterator[Row]:
    usual_s = {index: statistics.median(waits) for index in range(len(jobs)) if (waits := _waits(quiet, index))}
    later_s = [wait_s - usual_s[index] for index, wait_s in harvested.waits_s.items() if index in usual_s]
    yield row("jobs of the owner", "jobs", len(jobs))
    yield row(
        "longest delay of a job's start against without Fallow", "s", max(later_s, default=0.0), at_most=GRACE_S + 1
    )
    means = [statistics.fmean(run.waits_s.values()) for run in quiet]
    mean_s = statistics.fmean(harvested.waits_s.values())
    noise_s = max(means) - min(means)
    yield row(
        "mean wait of the owner's jobs", "s", mean_s, "mean of three runs without Fallow", statistics.fmean(means)
    )
    yield row(
        "mean wait beyond the noise of three runs without Fallow",
        "s",
        max(0.0, mean_s - max(means)),
        "their spread",
        noise_s,
        at_most=noise_s,
    )
    yield row("the owner's jobs that failed", "jobs", sum(_failed(job) for job in harvested.log), at_most=0)
    started = sum(len(run.waits_s) for run in quiet) / len(quiet)
    yield row("jobs of the owner that started", "jobs", len(harvested.waits_s), "without Fallow", started)


def _waits(runs: Sequence[Run], index: int) -> list[float]:
    return [run.waits_s[index] for run in runs if index in run.waits_s]


def _failed(job: Logged) -> bool:
    return job.name.startswith(OWNER) and job.state in ("FAILED", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL")


def _harvest_rows(run: Run, seen: Seen, work: str) -> Iterator[Row]:
    idle_s = _idle_node_s(run.log, seen)
    yield row("idle node-seconds that Slurm logged", "s", idle_s)
    ready_s = _integral(seen, lambda node: node.lease_state == "ready")
    there_s = _integral(seen, lambda node: node.state in ("spare", "lent", "draining"))
    yield row("idle node-seconds covered by registered agents", "", there_s / idle_s, at_least=0.9)
    yield row("idle node-seconds covered by nodes ready for workers", "", ready_s / idle_s, at_least=0.9)
    yield from _warm_up_rows(run.log, seen, work)
    useful_s = _useful_s(seen.looks[-1]) - _useful_s(seen.looks[0])
    yield row(f"{work}: useful device-seconds of the idle ones (the bound)", "", useful_s / idle_s, at_least=0.9)
    yield row("training steps lost", "steps", seen.steps_lost, at_most=0)


def _idle_node_s(log: Sequence[Logged], seen: Seen) -> float:
    """Node-seconds of the replay that no job of the owner had."""
    busy_s = sum(
        len(job.nodes) * max(0.0, min(job.end_s, seen.ended_s) - max(job.start_s, seen.began_s))
        for job in log
        if job.name.startswith(OWNER)
    )
    return NODES * (seen.ended_s - seen.began_s) - busy_s


def _integral(seen: Seen, counts: Any) -> float:
    return sum(
        (later.at_s - look.at_s) * sum(bool(counts(node)) for node in look.nodes)
        for look, later in itertools.pairwise(seen.looks)
    )


def _useful_s(look: Look) -> float:
    return sum(node.device_seconds.useful for node in look.nodes)


def _warm_up_rows(log: Sequence[Logged], seen: Seen, work: str) -> Iterator[Row]:
    stages: dict[str, list[float]] = {"registered": [], "ready": [], "useful": []}
    for pilot in (job for job in log if job.name == f"fallow-{SITE}" and job.start_s > seen.began_s and job.nodes):
        for stage, at_s in _stages(pilot, seen.looks).items():
            stages[stage].append(at_s - pilot.start_s)
    yield row("pilots that started during the replay", "pilots", len(stages["registered"]))
    medians = {stage: statistics.median(values) for stage, values in stages.items() if values}
    if len(medians) == 3:
        yield row("warm-up: pilot's start to first useful second, median", "s", medians["useful"], at_most=5.0)
        yield row("of it until the agent is registered (Slurm, Python, ours)", "s", medians["registered"])
        yield row("of it until the raylet is ready (Ray)", "s", medians["ready"] - medians["registered"])
        yield row("of it until the worker is useful (Ray, torch, ours)", "s", medians["useful"] - medians["ready"])
    found = [worker_parts(event) for event in seen.first_steps] if work == "train" else []
    for part in dict.fromkeys(itertools.chain.from_iterable(found)):
        yield row(f"of the worker's: {part}", "s", statistics.median(one.get(part, 0.0) for one in found))


def _stages(pilot: Logged, looks: Sequence[Look]) -> dict[str, float]:
    """When the pilot's node was first seen registered, ready and useful, as far as it came."""
    found: dict[str, float] = {}
    useful_before: float | None = None
    for look in looks:
        node = next((n for n in look.nodes if n.id == f"{SITE}.{pilot.nodes[0]}"), None)
        if node is None or look.at_s < pilot.start_s:
            useful_before = node.device_seconds.useful if node else None
            continue
        if look.at_s > pilot.end_s:
            break
        if node.state in ("spare", "lent"):
            found.setdefault("registered", look.at_s)
        if node.lease_state == "ready":
            found.setdefault("ready", look.at_s)
        if node.device_seconds.useful > (useful_before or 0.0):
            found.setdefault("useful", look.at_s)
    return found


def _hand_back_rows(seen: Seen) -> Iterator[Row]:
    reclaims = {
        (node.id, reclaim.at_s): reclaim
        for look in seen.looks
        for node in look.nodes
        for reclaim in node.reclaims
        if reclaim.at_s >= seen.began_s
    }.values()
    frees = [reclaim.free_s for reclaim in reclaims]
    yield row("reclaims", "reclaims", len(frees))
    if frees:
        yield row("node free after notice, median", "s", statistics.median(frees), at_most=2.0)
        yield row("node free after notice, longest", "s", max(frees), at_most=GRACE_S)
        late = sum(reclaim.free_s > reclaim.grace_s for reclaim in reclaims)
        yield row("nodes freed after their deadline", "nodes", late, at_most=0)
    yield row("left behind by pilots (processes, files, shared memory)", "things", len(seen.leftovers), at_most=0)


if __name__ == "__main__":
    sys.exit(main())
