"""The demo from its first step to its last; what each step does lies in the modules beside this one."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console

from fallow.demo.narrator import Narrator
from fallow.demo.serving import Served, serve, serve_spec
from fallow.demo.summary import Check, Measured, as_json, checks
from fallow.demo.training import Trained, train, train_spec, writing_to
from fallow.demo.witness import Witness
from fallow.errors import InvalidSpec, UsageError
from fallow.local_cluster import LocalCluster
from fallow.processes import exiting_on_sigterm
from protocol.jobspec import JobSpec

NODES = 4
_EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run_demo(data: Path | None, json_file: Path | None, home: Path | None) -> int:
    """Run it; 0 exactly when every law held. On a terminal everything stays up until Ctrl-C."""
    spec = train_spec(_example("train-moe.yaml"), data)  # bad data is refused before anything starts
    own_home = home is None
    folder = (home or Path(tempfile.mkdtemp(prefix="fallow-"))).absolute()
    cluster = LocalCluster(folder, NODES)
    narrator = Narrator()
    with exiting_on_sigterm():
        try:
            measured = _run_steps(cluster, writing_to(spec, folder / "model"), narrator)
            broken = _summarise(measured, narrator, json_file)
            _stay_up(cluster)
        finally:
            narrator.finish()
            cluster.stop()
    if own_home and not broken and not sys.stdout.isatty():
        cluster.remove()
    else:
        print(f"Model, logs and database stay in {folder}.")
    return 1 if broken else 0


def _example(name: str) -> Path:
    path = _EXAMPLES / name
    if not path.is_file():
        raise UsageError(f"{path} is missing.", "Run the demo from a checkout of Fallow: `make demo`.")
    return path


def _run_steps(cluster: LocalCluster, spec: JobSpec, narrator: Narrator) -> Measured:
    narrator.step(1, f"Start a scheduler, a site and {NODES} agents")
    cluster.start(progress=lambda what: narrator.say(f"starting {what}"))
    narrator.say(f"status page: {cluster.page}")
    cluster.await_ready_nodes(NODES)
    narrator.say(f"{NODES} nodes are lent, each with a raylet of its own")
    witness = Witness(cluster)
    witness.start()
    narrator.step(2, "Train a Mixture-of-Experts model")
    trained = train(cluster, spec, narrator)
    narrator.step(5, "Serve it, and take a node back in mid-stream")
    cluster.await_ready_nodes(NODES)
    served = serve(cluster, serve_spec(_example("serve-moe.yaml"), Path(trained.job.output)), narrator)
    refused, unplaced = _refused_with_reason(cluster), _unplaced_with_reason(cluster)
    witness.stop()
    return _measured(cluster, trained, served, witness, refused, unplaced)


def _measured(
    cluster: LocalCluster, trained: Trained, served: Served, witness: Witness, refused: bool, unplaced: bool
) -> Measured:
    assert trained.spec.train is not None
    return Measured(
        train=trained.job,
        train_steps_wanted=trained.spec.train.steps,
        loss_first=trained.loss_first,
        snapshot_every=trained.spec.train.snapshot_every,
        hand_backs=(trained.hand_back, served.hand_back),
        resubmit_existed=trained.resubmit_existed,
        undisturbed=served.undisturbed,
        disturbed=served.disturbed,
        refusal_has_reason=refused,
        unplaced_has_reason=unplaced,
        usage={by: cluster.client.usage(by) for by in ("job", "node", "site")},
        witness=witness,
    )


def _refused_with_reason(cluster: LocalCluster) -> bool:
    """Whether a spec that no cluster could run is refused with the path of the field."""
    bad = {"kind": "task", "name": "impossible", "width": {"min": 3, "max": 2}, "task": {"command": ["true"]}}
    try:
        cluster.client.submit(bad)
    except InvalidSpec as error:
        return any(problem.startswith("width") for problem in error.problems)
    return False


def _unplaced_with_reason(cluster: LocalCluster) -> bool:
    """Whether a job that is too wide for all nodes says so, and what to do."""
    task = {"command": ["true"], "output": str(cluster.home / "too-wide")}
    wide = {"kind": "task", "name": "too-wide", "width": {"min": 64, "max": 64}, "task": task}
    job = cluster.client.submit(wide).job
    deadline_s = time.monotonic() + 15.0
    try:
        while time.monotonic() < deadline_s:
            if any(r.message and r.remedy for r in cluster.client.why(job).reasons):
                return True
            time.sleep(0.3)
        return False
    finally:
        cluster.client.cancel(job)


def _summarise(measured: Measured, narrator: Narrator, json_file: Path | None) -> list[Check]:
    narrator.step(6, f"Summary, after {narrator.elapsed_s:.0f} s")
    made = checks(measured)
    broken = [check for check in made if not check.held]
    summary = as_json(measured, broken)
    console = Console(soft_wrap=True, highlight=False)
    for check in made:
        console.print(f"   {'[green]held  [/]' if check.held else '[red]BROKEN[/]'}  {check}", markup=True)
    print(json.dumps(summary, indent=2))
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return broken


def _stay_up(cluster: LocalCluster) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return
    print(f"\nEverything stays up until Ctrl-C. Status page: {cluster.page}")
    print(f"Try it: FALLOW_HOME={cluster.home} .venv/bin/fallow nodes", flush=True)
    stop = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    stop.wait()
