"""How results look: tables for people, JSON for programs. Colours and bars only on a terminal."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from fallow.results import DeviceSeconds, Job, Node, Reason, Usage, Why

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]

_COLOURS = {
    "running": "green",
    "done": "green",
    "lent": "green",
    "ready": "green",
    "failed": "red",
    "lost": "red",
    "draining": "yellow",
    "parked": "yellow",
    "suspect": "yellow",
    "queued": "cyan",
    "starting": "cyan",
    "spare": "cyan",
}


def console() -> Console:
    """Standard output; plain in a pipe and under NO_COLOR, and then never wrapped."""
    from rich.console import Console

    return Console(soft_wrap=not sys.stdout.isatty(), highlight=False)


def print_json(value: Any) -> None:
    """Print a result, or a list of results, as JSON."""
    print(json.dumps(_plain(value), ensure_ascii=False, indent=2 if sys.stdout.isatty() else None), flush=True)


def print_error(message: str, remedy: str = "") -> None:
    """Say on stderr what is wrong and what to do."""
    print(f"fallow: {message}", file=sys.stderr)
    if remedy:
        print(f"        {remedy}", file=sys.stderr)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Iterable) and not isinstance(value, str | dict):
        return [_plain(item) for item in value]
    return value


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print rows under headings; on a pipe with tabs between, so that `cut` and `awk` can take them."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(row))
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in columns:
        shown.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(_coloured(cell) for cell in row))
    console().print(shown)


def _coloured(cell: str) -> str:
    from rich.markup import escape

    colour = _COLOURS.get(cell)
    return f"[{colour}]{cell}[/]" if colour else escape(cell)


def jobs_table(jobs: Iterable[Job]) -> None:
    """One line for each job."""
    rows = [
        (
            j.id,
            j.name,
            j.kind,
            j.state,
            f"{j.width} of {_range(j)}",
            _progress(j),
            _speed(j),
            age(j.submitted_s),
            _note(j),
        )
        for j in jobs
    ]
    columns = ("JOB", "NAME", "KIND", "STATE", "WIDTH", "PROGRESS", "SPEED", "AGE", "NOTE")
    table(columns, rows, right=("PROGRESS", "SPEED", "AGE"))


def nodes_table(nodes: Iterable[Node]) -> None:
    """One line for each node."""
    rows = [
        (
            n.id,
            n.site,
            n.state,
            n.lease_state or "-",
            str(n.epoch or "-"),
            f"{len(n.spare_devices)}/{len(n.devices)}",
            ", ".join(sorted({d.model or d.kind for d in n.devices})),
            " ".join(w.id for w in n.workers) or "-",
            _node_note(n),
        )
        for n in nodes
    ]
    columns = ("NODE", "SITE", "STATE", "LEASE", "EPOCH", "SPARE", "DEVICES", "WORKERS", "NOTE")
    table(columns, rows, right=("EPOCH", "SPARE"))


def usage_table(usage: Usage, by: str) -> None:
    """The books, a line for each row and one for the total."""
    rows = [(row.key or "(no job)", *_seconds(row.device_seconds)) for row in usage.rows]
    rows.append(("total", *_seconds(usage.total)))
    numbers = ("BORROWED", "USEFUL", "RESCALE", "IDLE", "LOST", "HARVEST")
    table((by.upper(), *numbers), rows, right=numbers)


def job_details(job: Job) -> None:
    """Everything about one job."""
    pairs = [
        ("job", job.id),
        ("name", job.name),
        ("kind", job.kind),
        ("state", job.state),
        ("user", job.user),
        ("width", f"{job.width}, between {job.min_width} and {job.max_width}"),
        ("progress", _progress(job)),
        ("loss", f"{job.loss:.4f}" if job.loss else ""),
        ("speed", _speed(job)),
        ("submitted", clock_time(job.submitted_s)),
        ("ended", clock_time(job.ended_s) if job.ended_s else ""),
        ("endpoint", job.endpoint),
        ("output", job.output),
        ("message", job.message),
        ("steps lost", str(job.steps_lost) if job.steps_lost else ""),
        ("device time", _books(job.device_seconds)),
    ]
    for name, value in pairs:
        if value:
            print(f"{name:12} {value}")
    if job.waiting:
        reasons([job.waiting])
    _workers_and_rescales(job)


def _workers_and_rescales(job: Job) -> None:
    if job.workers:
        print()
        rows = [(w.id, w.role, w.node, str(w.epoch), ",".join(w.devices), str(len(w.experts))) for w in job.workers]
        table(("WORKER", "ROLE", "NODE", "EPOCH", "DEVICES", "EXPERTS"), rows, right=("EPOCH", "EXPERTS"))
    if job.rescales:
        print()
        lines = [
            (clock_time(r.at_s), r.cause, str(r.width), f"{r.stall_s:.2f} s", str(r.at_step), str(r.steps_lost))
            for r in job.rescales
        ]
        numbers = ("WIDTH", "STALL", "AT STEP", "STEPS LOST")
        table(("RESCALE", "CAUSE", *numbers), lines, right=numbers)


def reasons(given: Iterable[Reason]) -> None:
    """What is wrong, and what to do about it."""
    for reason in given:
        print(f"{'why':12} {reason.message}")
        if reason.remedy:
            print(f"{'':12} {reason.remedy}")


def why_details(why: Why) -> None:
    """Reasons first, then what happened last."""
    print(f"{why.job.name} ({why.job.id}) is {why.job.state}, width {why.job.width} of {_range(why.job)}.")
    reasons(why.reasons)
    if why.events:
        print()
        rows = [(clock_time(e.at_s), e.kind, e.message, e.caused_by) for e in why.events]
        table(("TIME", "EVENT", "WHAT HAPPENED", "CAUSED BY"), rows)


def age(since_s: float) -> str:
    """How long ago, in the largest unit that fits."""
    seconds = max(0.0, time.time() - since_s)
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def clock_time(at_s: float) -> str:
    """A moment of local time."""
    return datetime.fromtimestamp(at_s).strftime("%Y-%m-%d %H:%M:%S")


def _width(job: Job) -> str:
    return f"{job.width} of {_range(job)}"


def _range(job: Job) -> str:
    return f"{job.min_width}-{job.max_width}" if job.min_width != job.max_width else str(job.max_width)


def _progress(job: Job) -> str:
    return f"{job.step}/{job.total}" if job.total else str(job.step or "-")


def _speed(job: Job) -> str:
    unit = job.rate_unit.removesuffix("/s").removesuffix(" per second")
    return f"{job.rate:.1f} {unit}/s" if job.rate and not job.is_over else "-"


def _note(job: Job) -> str:
    if job.waiting:
        return job.waiting.message
    return job.endpoint if job.endpoint and not job.is_over else job.message


def _node_note(node: Node) -> str:
    if node.deadline_s is not None:
        return f"to be free in {max(0.0, node.deadline_s - time.time()):.0f} s"
    return node.reason


def _seconds(d: DeviceSeconds) -> tuple[str, ...]:
    harvest = f"{d.useful / d.borrowed:.1%}" if d.borrowed else "-"
    return (*(f"{x:.1f}" for x in (d.borrowed, d.useful, d.rescale, d.idle, d.lost)), harvest)


def _books(d: DeviceSeconds) -> str:
    return (
        f"{d.borrowed:.1f} s = {d.useful:.1f} useful + {d.rescale:.1f} rescale + {d.idle:.1f} idle + {d.lost:.1f} lost"
        if d.borrowed
        else ""
    )
