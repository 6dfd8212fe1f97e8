"""Steps 2 to 4 of the demo: train while one node is taken back and lent again, and another is cut off."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fallow.demo.narrator import Narrator
from fallow.demo.owner import take_back
from fallow.demo.summary import HandBack
from fallow.errors import FallowError, UsageError
from fallow.local_cluster import LocalCluster
from fallow.results import Job, JobEvent
from fallow.specs import load_spec
from protocol.jobspec import JobSpec

GRACE_S = 10.0
_POLL_S = 0.3
_PATIENCE_S = 180.0  # for one thing to happen
_STEPS_BETWEEN = 6  # of calm training before the next disturbance; no multiple of the steps between snapshots


@dataclass(frozen=True, slots=True)
class Trained:
    """What steps 2 to 4 saw."""

    job: Job
    spec: JobSpec
    loss_first: float
    hand_back: HandBack
    resubmit_existed: bool


def train_spec(example: Path, data: Path | None) -> JobSpec:
    """The example's job, on the demo's data. Raises `InvalidSpec` when the data is empty or not UTF-8."""
    spec = load_spec(example)
    if data is None:
        return spec
    if not data.is_file():
        raise UsageError(f"{data} is not a file.", "Give --data the path of a UTF-8 text file.")
    return load_spec(_with(spec, data=str(data.absolute())))


def writing_to(spec: JobSpec, output: Path) -> JobSpec:
    """The same job with this output folder."""
    return _with(spec, output=str(output))


def _with(spec: JobSpec, **changes: str) -> JobSpec:
    assert spec.train is not None
    return spec.model_copy(update={"train": spec.train.model_copy(update=changes)})


def train(cluster: LocalCluster, spec: JobSpec, narrator: Narrator) -> Trained:
    """Run the train job through all its disturbances. Raises `FallowError` when it does not go on."""
    request_id = uuid.uuid4().hex
    job = cluster.client.submit(spec, request_id).job
    again = cluster.client.submit(spec, request_id)
    narrator.say(f"job {job} submitted; sent again with the same request id: {again.job}")
    run = _Run(cluster, job, narrator)
    run.until("its first steps", lambda j: j.step >= 1 and j.loss > 0)
    loss_first = run.last.loss
    run.until("full width", lambda j: _runs_at(j, spec.max_width))
    narrator.step(3, "Take nodes away while it trains")
    hand_back = _graceful(run, spec, cluster.nodes[1])
    _abrupt(run, spec, cluster.nodes[2])
    narrator.step(4, "Finish training and write the model")
    ended = run.to_the_end()
    if not ended.succeeded:
        raise FallowError(f"The train job {ended.state}: {ended.message}", f"Read {cluster.home / 'logs'}.")
    narrator.say(f"done: loss {loss_first:.3f} to {ended.loss:.3f} in {ended.step} steps; model in {ended.output}")
    return Trained(ended, spec, loss_first, hand_back, again.existed and again.job == job)


def _graceful(run: _Run, spec: JobSpec, node: str) -> HandBack:
    run.calm()
    run.narrator.say(f"the owner of {node} wants it back in {GRACE_S:g} s")
    hand_back = take_back(run.cluster, node, GRACE_S)
    run.narrator.say(f"{node} was free after {hand_back.free_s:.2f} s")
    run.until("training on what is left", lambda j: _runs_at(j, spec.max_width - 1))
    run.calm()
    run.cluster.lend(node)
    run.narrator.say(f"{node} is lent again")
    run.until("growing back", lambda j: _runs_at(j, spec.max_width))
    run.say_warm_up(node)
    return hand_back


def _abrupt(run: _Run, spec: JobSpec, node: str) -> None:
    run.calm()
    assert spec.train is not None
    every = spec.train.snapshot_every
    run.until("the middle between two snapshots", lambda j: every // 3 <= j.step % every <= every // 2)
    lost_before = run.last.steps_lost
    run.cluster.kill_node(node)
    run.narrator.say(f"{node} is cut off: SIGKILL of all its processes")
    run.until("training on what is left", lambda j: any(r.cause == "loss" for r in j.rescales) and _goes_on(j))
    run.narrator.say(f"goes on at width {run.last.width}; {run.last.steps_lost - lost_before} steps are done again")
    run.calm()
    run.cluster.start_agent(node)
    run.narrator.say(f"{node} is back")
    run.until("growing back", lambda j: _runs_at(j, spec.max_width))
    run.say_warm_up(node)


def _goes_on(job: Job) -> bool:
    return job.state == "running" and job.width > 0


def _runs_at(job: Job, width: int) -> bool:
    """Whether it trains at this width by now, as its site says."""
    return job.state == "running" and job.width == width and bool(job.rescales) and job.rescales[-1].width == width


def _note(job: Job) -> str:
    if not job.step:
        return f"{job.state} at width {job.width}"
    return f"width {job.width}  loss {job.loss:.3f}  {job.rate:.1f} {job.rate_unit}"


class _Run:
    """The running job as last seen."""

    def __init__(self, cluster: LocalCluster, job: str, narrator: Narrator) -> None:
        self.cluster = cluster
        self.narrator = narrator
        self._job = job
        self.last = cluster.client.job(job)

    def until(self, what: str, reached: Callable[[Job], bool]) -> Job:
        """Wait for something to be true of the job. Ends early when the job ends."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while not (reached(self.last) or self.last.is_over):
            if time.monotonic() > deadline_s:
                why = self.last.waiting.message if self.last.waiting else self.last.message
                raise FallowError(
                    f"The train job waited {_PATIENCE_S:g} s in vain for {what}: it is {self.last.state} at width "
                    f"{self.last.width}. {why}",
                    f"Read {self.cluster.home / 'logs'}.",
                )
            time.sleep(_POLL_S)
            self.last = self.cluster.client.job(self._job)
            self.narrator.progress(self.last.step, self.last.total, _note(self.last))
        return self.last

    def to_the_end(self) -> Job:
        """Wait for the job's end, however long it takes, as long as it takes steps."""
        while not self.last.is_over:
            step = self.last.step
            self.until("a next step, or its end", lambda j, step=step: j.step > step)  # type: ignore[misc]
        return self.last

    def calm(self) -> None:
        """Some steps without a disturbance."""
        goal = self.last.step + _STEPS_BETWEEN
        self.until("more steps", lambda j: j.step >= goal)

    def say_warm_up(self, node: str) -> None:
        """How long the node's newest worker took from the opening of the lease to its first step, part by part."""
        lease = next(n for n in self.cluster.client.nodes() if n.id == node)
        came = [e for e in self.cluster.client.why(self._job).events if _came_to(e, node, lease.epoch)]
        if came and lease.lease_started_s is not None:
            parts = came[-1].message.rpartition("was opened: ")[2]
            self.narrator.say(
                f"{node} trained {came[-1].at_s - lease.lease_started_s:.2f} s after it was lent: {parts}"
            )


def _came_to(event: JobEvent, node: str, epoch: int | None) -> bool:
    return event.kind == "worker_running" and f"lease {node}/{epoch} " in event.message
