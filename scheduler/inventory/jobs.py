"""What users want of jobs, and what sites say of them."""

from __future__ import annotations

from collections import Counter

from scheduler.domain import events
from scheduler.domain.changing import changed
from scheduler.domain.cluster import NodeState
from scheduler.domain.jobs import (
    Assignment,
    Job,
    JobKind,
    JobState,
    Progress,
    RescaleRecord,
    Worker,
    WorkerState,
)
from scheduler.domain.ledger import Use
from scheduler.domain.plan import Assign, Withheld
from scheduler.domain.reasons import Reason, Refused
from scheduler.inventory.assigning import assign
from scheduler.inventory.effects import End
from scheduler.inventory.holding import end_worker, fence, lose_node, lose_worker, rebook, rebook_job
from scheduler.inventory.learning import learn_costs, learn_kind, learn_rate
from scheduler.inventory.records import Records

OLD_LOADS_WEIGHT = 0.9
"""How much of the experts' tokens counted so far still counts beside newer ones."""

FIRST_RETRY_S = 10.0
LAST_RETRY_S = 300.0
RESCALES_KEPT = 500

_OUTCOMES = {"done": JobState.DONE, "failed": JobState.FAILED, "cancelled": JobState.CANCELLED}


def live_job(r: Records, job: str, news: str) -> Job | None:
    """The job, if it has not ended; else a note that news of it came too late."""
    known = r.jobs.get(job)
    if known is None or not known.state.is_live:
        fence(r, f"{news} of {job}, which is over", job=job)
        return None
    return known


# --- from users ------------------------------------------------------------------------------------------------


def submitted(r: Records, e: events.JobSubmitted) -> None:
    """A new job waits for workers. A request that was seen before changes nothing."""
    if e.request_id and e.request_id in r.requests:
        _require_same_user(r, e)
        return
    if e.job in r.jobs:
        raise Refused(Reason("job_exists", f"there is already a job {e.job}.", "Submit it under another id."))
    if e.deadline_s is not None and e.deadline_s <= r.now_s:
        message = f"deadline: it passed {r.now_s - e.deadline_s:.0f} s ago."
        raise Refused(Reason("invalid_spec", message, "Name a later one, or leave it out."))
    job = Job(
        e.job,
        e.name,
        e.kind,
        e.user,
        JobState.QUEUED,
        r.now_s,
        e.spec_json,
        e.needs,
        weight=e.weight,
        device_kinds=e.device_kinds,
        shape=e.shape,
        copies=e.copies,
        curve=e.curve,
        costs=e.costs,
        priority=e.priority,
        deadline_s=e.deadline_s,
        budget_device_s=e.budget_device_s,
        kind_curves=e.kind_curves,
        turned_s=r.now_s,
        wanted=e.wanted,
    )
    r.put(job)
    if e.request_id:
        r.add_request(e.request_id, e.job)
    r.log("submitted", f"{e.user} submitted {e.kind} job {e.name}", job=e.job)


def _require_same_user(r: Records, e: events.JobSubmitted) -> None:
    owner = r.jobs[r.requests[e.request_id]].user
    if owner != e.user:
        raise Refused(
            Reason("request_id_taken", f"request id {e.request_id} is another user's.", "Send a new request id.")
        )


def cancel_requested(r: Records, e: events.CancelRequested) -> None:
    """End a job; one that has ended stays as it is. Raises Refused for an unknown job."""
    job = r.jobs.get(e.job)
    if job is None:
        raise Refused(Reason("unknown_job", f"there is no job {e.job}.", "See `fallow jobs --all` for their ids."))
    if not job.state.is_live or job.state is JobState.ENDING:
        return
    r.log("cancel", f"{e.user} cancelled it", job=job.id)
    if job.assignment is None:
        _end(r, job, JobState.CANCELLED, message=f"cancelled by {e.user}")
        return
    ending = r.move(job, JobState.ENDING)
    rebook_job(r, job.id)
    r.effects.append(End(ending, "cancelled"))


# --- from sites ------------------------------------------------------------------------------------------------


def worker_changed(r: Records, e: events.WorkerChanged) -> None:
    """A worker came up, left, died, or is slow."""
    worker = r.workers.get(e.worker)
    if worker is None or not worker.is_live or worker.lease != e.lease or worker.job != e.job:
        fence(r, f"news ({e.state}) of worker {e.worker} on {e.lease}, which is over", job=e.job, node=e.lease.node)
        return
    node = r.nodes[worker.lease.node]
    match e.state:
        case "running" if worker.state is WorkerState.STARTING:
            _run(r, worker, e.detail)
        case "slow":
            r.log("worker_slow", f"{e.worker} on {e.lease} {e.detail}", job=e.job, node=e.lease.node)
        case "left":
            end_worker(r, worker)
            r.log("worker_left", f"{e.worker} left {e.lease}", job=e.job, node=e.lease.node)
        case "lost" if node.state is NodeState.SUSPECT:
            lose_node(r, node, f"lost: its agent is away and worker {e.worker} died")
        case "lost":
            lose_worker(r, worker, e.detail or "its site says so")


def _run(r: Records, worker: Worker, detail: str) -> None:
    """`detail`: how long the parts of its warm-up took, for people."""
    r.move(worker, WorkerState.RUNNING, since_s=r.now_s)
    rebook(r, worker.lease)
    age_s = r.now_s - r.leases[worker.lease].started_s
    message = f"{worker.id} runs, {age_s:.2f} s after lease {worker.lease} was opened" + (
        f": {detail}" if detail else ""
    )
    r.log("worker_running", message, job=worker.job, node=worker.lease.node)


def reached(r: Records, e: events.AssignmentReached) -> None:
    """The job runs as a revision says, after a stall that the books now call rescale."""
    job = live_job(r, e.job, f"revision {e.revision} reached")
    if job is None:
        return
    if not max(1, job.reached_revision) <= e.revision <= job.assignment_revision:
        fence(r, f"revision {e.revision} of {job.id} reached, which is at {job.reached_revision}", job=job.id)
        return
    job = _record_rescale(r, job, e)
    if e.revision != job.assignment_revision or job.state is JobState.ENDING:
        return
    _settle_workers(r, job)
    r.lost_workers.pop(job.id, None)
    r.refusals.pop(job.id, None)
    if job.state is JobState.STARTING and e.width > 0:
        r.move(r.jobs[job.id], JobState.RUNNING, started_s=job.started_s or r.now_s)
        rebook_job(r, job.id)


def _record_rescale(r: Records, job: Job, e: events.AssignmentReached) -> Job:
    if _is_no_rescale(job, e):
        r.put(changed(job, reached_revision=e.revision))
        return r.jobs[job.id]
    record = RescaleRecord(r.now_s, e.cause, e.width, e.stall_s, e.bytes_moved, e.at_step, r.steps_lost.pop(job.id, 0))
    if job.state is JobState.RUNNING:
        _shift(r, job, Use.RESCALE, e.stall_s)
    r.put(
        changed(
            job,
            reached_revision=max(job.reached_revision, e.revision),
            rescales=(*job.rescales, record)[-RESCALES_KEPT:],
            costs=learn_costs(job.costs, e),
        )
    )
    r.log("reached", f"{e.cause}: width {e.width} after a stall of {e.stall_s:.3f} s", job=job.id, site=job.site)
    return r.jobs[job.id]


def _is_no_rescale(job: Job, e: events.AssignmentReached) -> bool:
    """Said again after a reconnection; or survivors had regrouped by themselves, and the assignment only agreed."""
    last = job.rescales[-1] if job.rescales else None
    if last is None or (last.cause, last.width) != (e.cause, e.width):
        return False
    is_known = e.revision == job.reached_revision
    if e.cause in ("loss", "straggler"):  # one assignment may see several
        return e.stall_s == 0.0 or (is_known and (last.stall_s, last.at_step) == (e.stall_s, e.at_step))
    return is_known or e.cause in ("grow", "shrink")  # a restarted site says anew what it did, without the stall


def _settle_workers(r: Records, job: Job) -> None:
    """By the contract every worker of a reached assignment is up, and every other one has left."""
    wanted = {slot.worker for slot in job.assignment.workers} if job.assignment else set()
    for worker in r.workers_of(job.id):
        if worker.id not in wanted:
            end_worker(r, worker)
        elif worker.state is WorkerState.STARTING:
            _run(r, worker, "")


def _shift(r: Records, job: Job, target: str, seconds: float) -> None:
    rebook_job(r, job.id)
    slots = job.assignment.workers if job.assignment else ()
    shares = Counter(slot.lease.node for slot in slots for _ in slot.devices)
    r.books.shift(job.id, shares, Use.USEFUL, target, max(0.0, seconds))


def work_lost(r: Records, e: events.WorkLost) -> None:
    """Steps must be done again: the time that they took was not useful after all."""
    job = live_job(r, e.job, "lost work")
    if job is None:
        return
    _shift(r, job, "lost", e.seconds)
    r.steps_lost[job.id] = r.steps_lost.get(job.id, 0) + e.steps
    r.put(changed(job, steps_lost=job.steps_lost + e.steps), quiet=True)
    r.log("work_lost", f"{e.steps} steps ({e.seconds:.2f} s) are lost: {e.cause}", job=job.id, site=job.site)


def assignment_refused(r: Records, e: events.AssignmentRefused) -> None:
    """The site cannot carry out the newest revision: the job waits, longer each time."""
    job = live_job(r, e.job, f"revision {e.revision} refused")
    if job is None or job.assignment is None or e.revision != job.assignment.revision:
        return
    count = r.refusals.get(job.id, 0)
    r.refusals[job.id] = count + 1
    until_s = r.now_s + min(FIRST_RETRY_S * 2**count, LAST_RETRY_S)
    r.withheld[job.id] = Withheld(job.id, e.reason, until_s)
    r.log("assignment_refused", str(e.reason), job=job.id, site=job.site, code=e.reason.code)
    if job.state is not JobState.ENDING and job.assignment.workers:
        assign(r, Assign(Assignment(job.id, job.assignment.revision + 1, ()), "shrink"))


def progressed(r: Records, e: events.JobProgressed) -> None:
    """How far a job is; its rate is a measurement of its width once it runs as assigned."""
    job = live_job(r, e.job, "progress")
    if job is None:
        return
    wants_other = bool(e.wanted) and e.wanted != job.wanted
    job = changed(job, wanted=e.wanted or job.wanted)
    progress = Progress(e.step, e.total, e.loss, e.rate, e.rate_unit, e.metrics)
    steady = job.state is JobState.RUNNING and job.reached_revision == job.assignment_revision
    measured = steady and e.rate > 0 and e.width == job.width
    if not measured or job.kind is JobKind.SERVE:  # its rate is what clients ask for, whatever its width
        r.put(changed(job, progress=progress), quiet=not wants_other)
        return
    kind_curves = learn_kind(job.kind_curves, _kind_of(r, job), job.curve, e.width, e.rate)
    curve = learn_rate(job.curve, e.width, e.rate)
    is_news = e.width not in dict(job.curve)  # who was narrowed to be measured may grow again
    r.put(changed(job, progress=progress, curve=curve, kind_curves=kind_curves), quiet=not is_news)


def _kind_of(r: Records, job: Job) -> str:
    """The kind of device that the job is on: a steady job's workers are all on one."""
    slot = job.assignment.workers[0] if job.assignment else None
    if slot is None or slot.lease not in r.leases:
        return ""
    return next((d.kind for d in r.leases[slot.lease].devices if d.id in slot.devices), "")


def experts_loaded(r: Records, e: events.ExpertsLoaded) -> None:
    """Tokens of a served model's experts: what was counted before counts less and less."""
    job = live_job(r, e.job, "experts' loads")
    if job is None or job.shape is None or len(e.tokens) != job.shape.layers * job.shape.experts:
        return
    before = r.expert_loads.get(job.id, (0.0,) * len(e.tokens))
    r.expert_loads[job.id] = tuple(OLD_LOADS_WEIGHT * old + new for old, new in zip(before, e.tokens, strict=True))


def ended(r: Records, e: events.JobEnded) -> None:
    """A job is over, and its workers are gone."""
    job = live_job(r, e.job, f"the end ({e.outcome})")
    if job is None:
        return
    _end(r, job, _OUTCOMES[e.outcome], message=e.message, output=e.output)


def _end(r: Records, job: Job, state: JobState, message: str, output: str = "") -> None:
    for worker in r.workers_of(job.id):
        end_worker(r, worker)
    bare = changed(job.assignment, workers=()) if job.assignment else None
    r.move(job, state, ended_s=r.now_s, message=message, output=output, assignment=bare)
    for table in (r.withheld, r.refusals, r.lost_workers, r.last_step, r.steps_lost, r.expert_loads):
        table.pop(job.id, None)
    r.log("job_ended", f"{state}: {message}" if message else str(state), job=job.id, site=job.site)


def endpoint_opened(r: Records, e: events.EndpointOpened) -> None:
    """A served model answers."""
    job = live_job(r, e.job, "an endpoint")
    if job is not None:
        r.put(changed(job, endpoint=e.url), quiet=True)
        r.log("endpoint", f"answers at {e.url}", job=job.id, site=job.site)
