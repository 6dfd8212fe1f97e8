"""What the demo measured, and which laws those measurements speak of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fallow.demo.completion import Completion
from fallow.demo.witness import Witness
from fallow.results import DeviceSeconds, Job, Rescale, Usage

GRACE_SLACK_S = 0.25
"""How long after the deadline a scan of /proc may still be running."""

BOOKS_TOLERANCE_S = 0.01
"""Device-seconds on the wire are rounded; the scheduler's own books are whole microseconds."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """One reclaim of the demo: what its agent measured, and what a scan of all processes saw."""

    node: str
    epoch: int
    grace_s: float
    free_s: float  # measured by the agent
    seen_free_s: float  # until no process with the lease's marker was left
    strays: int  # processes of the lease at the deadline


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything that the demo saw."""

    train: Job
    train_steps_wanted: int
    loss_first: float
    snapshot_every: int
    hand_backs: tuple[HandBack, ...]
    resubmit_existed: bool
    undisturbed: Completion
    disturbed: Completion
    refusal_has_reason: bool
    unplaced_has_reason: bool
    usage: dict[str, Usage]  # by "job", "node", "site"
    witness: Witness


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a law demands, and whether it held."""

    law: int
    demand: str
    held: bool
    measured: str

    def __str__(self) -> str:
        return f"law {self.law}: {self.demand}: {self.measured}"


def checks(m: Measured) -> list[Check]:
    """Every demand of a law that this run can measure. Law 6 needs two plans of one snapshot: tests check it."""
    return [
        *_owner_wins(m.hand_backs),
        Check(2, "no device has two workers", not m.witness.booked_twice, _seen(m.witness.booked_twice, m.witness)),
        Check(3, "no job ran below its minimum", not m.witness.gangs_broken, _seen(m.witness.gangs_broken, m.witness)),
        *_nothing_lost(m),
        *_same_mathematics(m),
        Check(7, "an invalid spec is refused with its field", m.refusal_has_reason, _yes(m.refusal_has_reason)),
        Check(7, "a job too wide waits with a reason", m.unplaced_has_reason, _yes(m.unplaced_has_reason)),
        *(_books_balance(by, usage) for by, usage in m.usage.items()),
    ]


def _owner_wins(hand_backs: Iterable[HandBack]) -> list[Check]:
    return [
        Check(
            1,
            f"{h.node} is free within {h.grace_s:g} s",
            h.free_s <= h.grace_s and h.seen_free_s <= h.grace_s + GRACE_SLACK_S and not h.strays,
            f"its agent says {h.free_s:.2f} s, /proc {h.seen_free_s:.2f} s, {h.strays} processes at the deadline",
        )
        for h in hand_backs
    ]


def _nothing_lost(m: Measured) -> list[Check]:
    graceful, abrupt = steps_lost_graceful(m.train), steps_lost_abrupt(m.train)
    most = m.snapshot_every * max(1, sum(is_abrupt(r) for r in m.train.rescales))
    lost = tokens_lost(m.undisturbed, m.disturbed)
    return [
        Check(4, "a submit sent again makes no second job", m.resubmit_existed, _yes(m.resubmit_existed)),
        Check(4, "a graceful reclaim loses no step", graceful == 0, f"{graceful} lost"),
        Check(4, f"an abrupt loss costs at most {most} steps", abrupt <= most, f"{abrupt} lost"),
        Check(4, "a reclaim in mid-stream loses no token", lost == 0, f"{lost} of {m.disturbed.tokens} lost"),
    ]


def _same_mathematics(m: Measured) -> list[Check]:
    done = m.train.succeeded and m.train.step == m.train_steps_wanted
    equal = m.undisturbed.text == m.disturbed.text
    return [
        Check(5, "training does exactly the steps asked for", done, f"{m.train.step} of {m.train_steps_wanted}"),
        Check(5, "the loss falls", m.train.loss < m.loss_first, f"{m.loss_first:.3f} to {m.train.loss:.3f}"),
        Check(5, "both greedy texts are equal", equal, f"{len(m.undisturbed.text)} characters"),
    ]


def _books_balance(by: str, usage: Usage) -> Check:
    lines = [(row.key, row.device_seconds) for row in usage.rows] + [("total", usage.total)]
    wrong = [key for key, d in lines if abs(_missing_s(d)) > BOOKS_TOLERANCE_S]
    borrowed = sum(row.device_seconds.borrowed for row in usage.rows)
    sums_up = abs(borrowed - usage.total.borrowed) <= BOOKS_TOLERANCE_S * max(1, len(usage.rows))
    return Check(
        8,
        f"the books balance by {by}",
        not wrong and sums_up and usage.total.borrowed > 0,
        f"{len(lines)} lines, {usage.total.borrowed:.1f} s borrowed" + (f", wrong: {wrong}" if wrong else ""),
    )


def _missing_s(d: DeviceSeconds) -> float:
    return d.borrowed - (d.useful + d.rescale + d.idle + d.lost)


def is_abrupt(rescale: Rescale) -> bool:
    """Whether it followed a loss without notice."""
    return rescale.cause == "loss"


def steps_lost_graceful(job: Job) -> int:
    """Steps done again because of rescales that had notice."""
    return sum(r.steps_lost for r in job.rescales if not is_abrupt(r))


def steps_lost_abrupt(job: Job) -> int:
    """Steps done again because of losses without notice."""
    return job.steps_lost - steps_lost_graceful(job)


def tokens_lost(undisturbed: Completion, disturbed: Completion) -> int:
    """Tokens of the undisturbed text that the client of the disturbed one did not get."""
    if undisturbed.text == disturbed.text:
        return 0
    return max(1, undisturbed.tokens - disturbed.tokens)


def _seen(faults: Iterable[str], witness: Witness) -> str:
    return "; ".join(sorted(faults)) or f"looked {witness.looks} times"


def _yes(held: bool) -> str:
    return "yes" if held else "no"


def as_json(m: Measured, broken: Iterable[Check]) -> dict[str, Any]:
    """The summary as `--json` writes it."""
    total = m.usage["job"].total
    return {
        "train": {
            "steps": m.train.step,
            "loss_first": round(m.loss_first, 4),
            "loss_last": round(m.train.loss, 4),
            "rescales": [{"cause": r.cause, "stall_s": round(r.stall_s, 3)} for r in m.train.rescales],
            "steps_lost_graceful": steps_lost_graceful(m.train),
            "steps_lost_abrupt": steps_lost_abrupt(m.train),
        },
        "reclaims": [{"node": h.node, "grace_s": h.grace_s, "free_s": round(h.free_s, 3)} for h in m.hand_backs],
        "serve": {
            "tokens": m.disturbed.tokens,
            "tokens_lost": tokens_lost(m.undisturbed, m.disturbed),
            "texts_equal": m.undisturbed.text == m.disturbed.text,
            "longest_stall_s": round(m.disturbed.longest_stall_s, 3),
        },
        "device_seconds": {
            "borrowed": round(total.borrowed, 3),
            "useful": round(total.useful, 3),
            "rescale": round(total.rescale, 3),
            "idle": round(total.idle, 3),
            "lost": round(total.lost, 3),
        },
        "agent": {
            "rss_mb": round(m.witness.agent_rss_bytes / 1e6, 1),
            "cpu_fraction": round(m.witness.agent_cpu_fraction, 4),
        },
        "laws_broken": [str(check) for check in broken],
    }
