"""Why a job does not run, or not at its full width: what is missing, in numbers, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scheduler.domain.jobs import Job
from scheduler.domain.reasons import Reason
from scheduler.planning.fit import least_bytes
from scheduler.planning.view import Pool, Terms, View
from scheduler.planning.worth import left_at_pace_s


def asleep(job: Job) -> Reason | None:
    """It can do without any worker for now."""
    if not job.is_asleep:
        return None
    message = f"job {job.id} has given its nodes up: nobody has asked anything of it for its idle_s."
    return Reason("asleep", message, "A request to its endpoint brings it back; leave idle_s out to keep it up.")


def no_site(job: Job, view: View) -> Reason:
    """Nowhere to run at all."""
    if job.started_s is not None and job.site and job.site not in view.sites:
        message = f"job {job.id} has begun at site {job.site}, which is not connected."
        return Reason("site_away", message, f"Start `fallow site --name {job.site}` again.")
    if not view.sites:
        return Reason("no_site", f"job {job.id} waits: no site is connected.", "Start `fallow site`.")
    kinds = " or ".join(job.device_kinds) or "any"
    there = sorted({kind for site, kind in view.pools if site in view.sites})
    found = f"there are {', '.join(there)}" if there else "no node is lent"
    message = f"job {job.id} needs {job.min_width} {kinds} devices; {found}."
    return Reason("no_nodes", message, "Lend nodes with `fallow agent`, or change device_kinds.")


def too_large(job: Job, pools: list[Pool]) -> Reason:
    """The model does not fit on the devices that there are."""
    needed = least_bytes(job)
    most = max((pool.memory_bytes[-1][0] for pool in pools if pool.capacity), default=0)
    message = (
        f"job {job.id}: a worker needs {_gib(needed)} of device memory at the job's widest ({job.max_width} workers); "
        f"the largest lent device has {_gib(most)}."
    )
    return Reason("model_too_large", message, "Raise the width's max, use a smaller model, or lend larger devices.")


def no_capacity(job: Job, pool: Pool, needed: int, promised: int, others: Sequence[Pool] = ()) -> Reason:
    """Too few devices; `promised` are taken by jobs that come first. `others`: where there is even less room."""
    site, kind = pool.key
    message = f"job {job.id} needs {needed} {kind} devices at site {site}: {_inventory(pool, promised)}."
    if others:
        places = ", ".join(f"{kind} at {site}" for site, kind in sorted(pool.key for pool in others))
        message += f" There is no more room elsewhere ({places})."
    remedy = "It starts when nodes are lent or freed; or lower the width's min, or cancel another job."
    return Reason("no_capacity", message, remedy)


def budget_spent(job: Job) -> Reason:
    """It may use no more."""
    hours = (job.budget_device_s or 0.0) / 3600
    message = f"job {job.id} has used its budget of {hours:g} device-hours."
    return Reason("budget_spent", message, "Submit what is left of it with a budget of its own.")


def with_stakes(reason: Reason, job: Job, terms: Terms) -> Reason:
    """The reason, with what its user set beside it: priority, deadline, budget. As it was if nothing was set."""
    stakes = [f"priority {job.priority:+d}"] if job.priority else []
    if job.deadline_s is not None:
        stakes.append(_deadline(job.deadline_s - terms.now_s, left_at_pace_s(job, terms.now_s)))
    if job.budget_device_s is not None:
        spent_s = terms.spent.get(job.id, 0.0)
        stakes.append(f"{spent_s / 3600:.1f} of {job.budget_device_s / 3600:g} device-hours used")
    return replace(reason, message=f"{reason.message} ({'; '.join(stakes)})") if stakes else reason


def _deadline(left_s: float, needs_s: float | None) -> str:
    when = f"due in {left_s / 3600:.1f} h" if left_s > 0 else f"{-left_s / 3600:.1f} h late"
    return when if needs_s is None else f"{when}, {needs_s / 3600:.1f} h of work left at its pace so far"


def not_free_yet(job: Job, pool: Pool, needed: int) -> Reason:
    """There will be enough as soon as others have left."""
    site, kind = pool.key
    message = (
        f"job {job.id} needs {needed} {kind} devices at site {site}, which others are leaving: {_inventory(pool)}."
    )
    return Reason("not_free_yet", message, "It starts by itself as soon as they are free.")


def below_max(job: Job, pool: Pool, width: int) -> Reason:
    """It runs, and could use more."""
    site, kind = pool.key
    message = f"job {job.id} runs on {width} of at most {job.max_width} {kind} devices at {site}: {_inventory(pool)}."
    return Reason("below_max", message, "It grows by itself when devices are free; nothing needs to be done.")


def below_max_away(job: Job, width: int) -> Reason:
    """It runs at a site that cannot be told anything."""
    message = f"job {job.id} runs on {width} workers at site {job.site}, which is not connected."
    return Reason("site_away", message, f"Start `fallow site --name {job.site}` again.")


def _inventory(pool: Pool, promised: int = 0) -> str:
    counts = [
        (len(pool.free), "idle"),
        (promised, "promised to jobs that come first"),
        (pool.emptying, "being left"),
        (len(pool.starting) + pool.held, "held by running jobs"),
        (pool.draining, "draining"),
        (pool.joining, "joining"),
        (pool.suspect, "out of touch"),
    ]
    parts = [f"{count} {'is' if count == 1 else 'are'} {what}" for count, what in counts[:1]]
    parts += [f"{count} {'is' if count == 1 else 'are'} {what}" for count, what in counts[1:] if count]
    return ", ".join(parts)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"
