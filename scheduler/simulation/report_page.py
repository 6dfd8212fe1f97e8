"""The report of a replay: one page that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from scheduler.simulation.bound import idle_counts
from scheduler.simulation.outcome import HOUR_S, JobOutcome, Outcome
from scheduler.simulation.replay import JobRecord, Replay
from scheduler.simulation.svg_charts import Part, Series, bar, binned, legend, overlaid, stacked

Values = NDArray[np.float64]

BINS = 480
DRAWN_JOBS = 10
"""Jobs with a colour of their own in the picture of widths; the rest share one."""

LISTED_JOBS = 200

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --line: #d9dee6; --paper: #fff; --card: #f6f8fa;
  --idle: #cfd8e3; --useful: #2a7f62; --used: #3aa17e; --up: #e08e45; --down: #c9573f; --rest: #8c7ab8;
  --none: #e6eaef }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa5b4; --line: #333c49; --paper: #12161c;
  --card: #1a2029; --idle: #3b4656; --none: #2a323d } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif }
main { max-width: 1040px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 22px; margin: 0 }
h2 { font-size: 16px; margin: 34px 0 8px }
p { color: var(--soft); margin: 2px 0 12px }
svg { width: 100%; display: block }
svg text { fill: var(--soft); font-size: 11px }
svg .unit { font-style: italic }
svg.bar { height: 34px; border-radius: 4px }
.grid { stroke: var(--line) }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(126px, 1fr)); gap: 10px; margin: 18px 0 }
.figures div { background: var(--card); border-radius: 6px; padding: 10px 14px }
.figures b { display: block; font-size: 21px; font-variant-numeric: tabular-nums }
.figures span { color: var(--soft); font-size: 13px }
.key { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 0; margin: 8px 0; font-size: 13px;
  color: var(--soft) }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px }
.key b { color: var(--ink) }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--line); white-space: nowrap }
th { color: var(--soft); font-weight: 500 }
th:first-child, td:first-child { text-align: left }
"""

PALETTE = ("#3b6fb6", "#3aa17e", "#e08e45", "#8c7ab8", "#c9573f", "#5aa9c4", "#a3a13a", "#b96b9a", "#7d8794", "#6b8f3f")
COLOURS = {"idle": "var(--idle)", "used": "var(--used)", "useful": "var(--useful)", "up": "var(--up)"} | {
    "down": "var(--down)", "rest": "var(--rest)", "none": "var(--none)", "others": "var(--soft)"
}  # fmt: skip


def page(outcome: Outcome, trace: str, policy: str) -> str:
    """The whole page."""
    title = f"{policy} on {trace}"
    body = "".join(
        [
            f"<h1>{escape(title)}</h1><p>{escape(_what(outcome.replay))}</p>",
            _figures(outcome),
            _nodes(outcome.replay),
            _losses(outcome),
            _widths(outcome.replay),
            _forecast(outcome),
            _jobs(outcome.jobs),
        ]
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}{_colours()}</style></head>'
        f"<body><main>{body}</main></body></html>\n"
    )


def _colours() -> str:
    named = COLOURS | {f"job{i}": colour for i, colour in enumerate(PALETTE)}
    return "".join(f".{name} {{ fill: {colour}; background: {colour} }}\n" for name, colour in named.items())


def _what(replay: Replay) -> str:
    hours = (replay.end_s - replay.start_s) / HOUR_S
    span = f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} hours"
    jobs = f"{len(replay.jobs)} job{'s' if len(replay.jobs) != 1 else ''}"
    return f"{replay.trace.nodes:,} nodes, {len(replay.trace.intervals):,} idle intervals, {span}, {jobs}"


def _figures(outcome: Outcome) -> str:
    figures = outcome.as_json()
    shown = [
        (f"{outcome.harvest:.4f}", "harvest: useful work / frictionless bound"),
        (f"{outcome.u:.4f}", "U: against a static pool of the same node-time"),
        (f"{figures['node_hours']['useful']:,.0f} h", "useful node-hours"),
        (f"{figures['rescales']:,}", "rescales"),
        (_duration(figures["starvation_s"]), "longest time a job had no node"),
        (f"{outcome.fairness:.3f}", "fairness (Jain): 1 is even"),
        (f"{figures['planner']['p99_ms']:.1f} ms", f"planner, 99th percentile of {figures['planner']['calls']:,}"),
    ]
    return (
        '<div class="figures">'
        + "".join(f"<div><b>{value}</b><span>{escape(what)}</span></div>" for value, what in shown)
        + "</div>"
    )


def _nodes(replay: Replay) -> str:
    edges = _edges(replay)
    times, counts = idle_counts(replay.trace, replay.start_s, replay.end_s)
    used = np.sum([_width_means(record, edges) for record in replay.jobs], axis=0) if replay.jobs else edges[:-1] * 0
    most = sum(record.job.max_width for record in replay.jobs if record.ended_s is None)
    idle = binned(times, counts.astype(float), edges)
    series = [Series("lent: idle nodes that the machine offers", idle, "idle"), Series("used by jobs", used, "used")]
    note = f"The jobs that are left at the end can use {most:,} nodes together." if most else ""
    return f"<h2>Nodes lent and used</h2><p>{note}</p>{overlaid(series, edges, 'nodes')}{legend(series)}"


def _losses(outcome: Outcome) -> str:
    tally, bound, losses = outcome.total, outcome.bound, outcome.losses
    work = [
        Part("useful", tally.useful_s / HOUR_S, "useful"),
        Part("not done in stalls after gaining nodes", losses["stalls_up"] / HOUR_S, "up"),
        Part("not done in stalls after losing nodes", losses["stalls_down"] / HOUR_S, "down"),
        Part("other widths than the best, and warm-up", max(0.0, losses["widths_and_warm_up"]) / HOUR_S, "rest"),
    ]
    stalled_s = tally.stalled_up_s + tally.stalled_down_s
    nodes = [
        Part("at work", (tally.held_s - stalled_s - tally.warming_s) / HOUR_S, "used"),
        Part("in a job that stands still", stalled_s / HOUR_S, "up"),
        Part("warming up", tally.warming_s / HOUR_S, "rest"),
        Part("usable, but held by no job", max(0.0, bound.usable_s - tally.held_s) / HOUR_S, "down"),
        Part("more than the jobs can use", max(0.0, bound.idle_s - max(bound.usable_s, tally.held_s)) / HOUR_S, "none"),
    ]
    return (
        "<h2>Where the work of the frictionless bound went</h2><p>In useful node-hours: what the jobs would do at "
        f"best, were rescales free.</p>{bar(work, 'h')}"
        f"<h2>Where the idle node-hours went</h2><p>Everything that the machine offered.</p>{bar(nodes, 'h')}"
    )


def _widths(replay: Replay) -> str:
    edges = _edges(replay)
    ranked = sorted(replay.jobs, key=lambda record: -record.clock.tally.held_s)
    drawn, others = ranked[:DRAWN_JOBS], ranked[DRAWN_JOBS:]
    series = [
        Series(record.job.id, _width_means(record, edges), f"job{i}")
        for i, record in enumerate(sorted(drawn, key=lambda record: record.job.id))
    ]
    if others:
        rest = np.sum([_width_means(record, edges) for record in others], axis=0)
        series.append(Series(f"{len(others)} more jobs", rest, "others"))
    if not series:
        return ""
    return f"<h2>Widths of the jobs</h2><p>Nodes held by each.</p>{stacked(series, edges, 'nodes')}{legend(series)}"


def _forecast(outcome: Outcome) -> str:
    rows = "".join(
        f"<tr><td>{_duration(c.horizon_s)}</td><td>{c.predicted:.4f}</td><td>{c.observed:.4f}</td>"
        f"<td>{c.predicted - c.observed:+.4f}</td><td>{c.asked:,}</td></tr>"
        for c in outcome.calibration
    )
    return (
        "<h2>Was the forecast right?</h2><p>Share of idle nodes that were to last so long, by what was known then, and "
        'that did.</p><div class="wide"><table><tr><th>still idle after</th><th>predicted</th><th>observed</th>'
        f"<th>difference</th><th>nodes asked about</th></tr>{rows}</table></div>"
    )


def _jobs(jobs: Sequence[JobOutcome]) -> str:
    rows = "".join(
        f"<tr><td>{escape(j.id)}</td><td>{j.useful_node_s / HOUR_S:,.2f}</td><td>{j.held_node_s / HOUR_S:,.2f}</td>"
        f"<td>{j.rescales:,}</td><td>{_duration(j.stood_still_s)}</td><td>{_duration(j.longest_wait_s)}</td>"
        f"<td>{'' if j.ended_s is None else _duration(j.ended_s - j.arrived_s)}</td></tr>"
        for j in jobs[:LISTED_JOBS]
    )
    more = f"<p>and {len(jobs) - LISTED_JOBS:,} more</p>" if len(jobs) > LISTED_JOBS else ""
    return (
        '<h2>Jobs</h2><div class="wide"><table><tr><th>job</th><th>useful node-hours</th><th>held node-hours</th>'
        "<th>rescales</th><th>stood still</th><th>longest wait</th><th>from arrival to end</th></tr>"
        f"{rows}</table></div>{more}"
    )


def _edges(replay: Replay) -> Values:
    return np.linspace(replay.start_s, max(replay.end_s, replay.start_s + 1.0), BINS + 1)


def _width_means(record: JobRecord, edges: Values) -> Values:
    changes = record.clock.changes
    if not changes:
        return np.zeros(len(edges) - 1)
    times = np.array([edges[0], *(at_s for at_s, _, _ in changes)])
    widths = np.cumsum([0, *(len(came) - len(left) for _, came, left in changes)]).astype(float)
    return binned(times, widths, edges)


def _duration(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds >= size and seconds % size == 0):
            return f"{seconds / size:,.1f} {unit}".replace(".0 ", " ")
    return f"{seconds:.0f} s"
