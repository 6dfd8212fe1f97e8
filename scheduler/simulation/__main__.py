"""`python -m scheduler.simulation --trace FILE ...`: replay a trace, print the figures, write what was asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scheduler.control_loop import Planner
from scheduler.planning.plan import Replanner
from scheduler.simulation import policies
from scheduler.simulation.collecting import seldom_collecting
from scheduler.simulation.command_line import Options, parse
from scheduler.simulation.job_clock import Physics
from scheduler.simulation.job_mix import MixJob, default_mix, read_job_mix
from scheduler.simulation.outcome import Outcome, outcome_of
from scheduler.simulation.replay import Replay, Replayer, Setting
from scheduler.simulation.report_page import page
from scheduler.simulation.timeline import write_timeline
from scheduler.simulation.traces import BadTrace, Trace, read_trace

FEW_NODES = 200_000
"""More nodes than this in a trace are worth a warning: the replay is of one machine, not of all of them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a file that cannot be used, 2 a command line that cannot be understood."""
    options, console = parse(arguments), Console(stderr=True)
    try:
        with seldom_collecting():
            trace, mix = _read(options, console)
            outcome = outcome_of(_replay(trace, mix, options, console))
            _write(outcome, options)
    except BadTrace as error:
        console.print(f"fallow simulate: {error}", style="red", highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        console.print(f"fallow simulate: {error.filename}: {error.strerror}", style="red", soft_wrap=True)
        return 1
    _show(outcome, options)
    return 0


def _read(options: Options, console: Console) -> tuple[Trace, tuple[MixJob, ...]]:
    trace = read_trace(options.trace).between(options.from_s, options.to_s or float("inf"))
    if not trace.intervals:
        raise BadTrace(options.trace.name, None, "no node is idle in this part of it: choose other --from-s, --to-s")
    mix, left_out = read_job_mix(options.jobs) if options.jobs else (default_mix(options.parallel), ())
    for what, count in (*trace.left_out, *left_out):
        console.print(f"note: {count} {what}", style="yellow", highlight=False, soft_wrap=True)
    if trace.nodes > FEW_NODES:
        console.print(f"note: {trace.nodes} nodes; expect about 2 GB of memory a million", style="yellow")
    return trace, mix


def _replay(trace: Trace, mix: Sequence[MixJob], options: Options, console: Console) -> Replay:
    setting = Setting(
        parallel=options.parallel,
        endless=options.endless,
        grace_s=options.grace_s,
        physics=Physics(options.rescale_up_s, options.rescale_down_s, options.warmup_s),
        curves_known=not options.unknown_curves,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        start_s = trace.intervals[0].start_s
        task = progress.add_task(f"{options.policy} on {options.trace.name}", total=trace.end_s - start_s)
        tell: Callable[[float], None] = lambda now_s: progress.update(task, completed=now_s - start_s)  # noqa: E731
        with seldom_collecting():
            return Replayer(trace, mix, planner_for(options, mix), setting, tell).run()


def planner_for(options: Options, mix: Sequence[MixJob]) -> Planner:
    """The policy that was asked for."""
    if options.policy == "bftrainer":
        return policies.bftrainer({job.id: _priced(job, options) for job in mix}, options.horizon_s)
    return policies.equal() if options.policy == "equal" else Replanner()


def _priced(job: MixJob, options: Options) -> MixJob:
    up_s = job.rescale_up_s if options.rescale_up_s is None else options.rescale_up_s
    down_s = job.rescale_down_s if options.rescale_down_s is None else options.rescale_down_s
    return replace(job, rescale_up_s=up_s, rescale_down_s=down_s)


def _asked(options: Options) -> dict[str, Any]:
    return {name: str(v) if isinstance(v := getattr(options, name), Path) else v for name in Options.__slots__}


def _write(outcome: Outcome, options: Options) -> None:
    if options.json:
        options.json.write_text(json.dumps({"options": _asked(options), **outcome.as_json()}, indent=1) + "\n")
    if options.timeline:
        write_timeline(outcome.replay.jobs, options.timeline)
    if options.report:
        options.report.write_text(page(outcome, options.trace.name, options.policy), encoding="utf-8")


def _show(outcome: Outcome, options: Options) -> None:
    figures = outcome.as_json()
    hours, latency = figures["node_hours"], figures["planner"]
    print(
        f"{options.policy} on {options.trace.name}: harvest {outcome.harvest:.4f} of the frictionless bound, ", end=""
    )
    print(f"U {outcome.u:.4f}")
    print(
        f"  node-hours: {hours['idle']:.1f} idle, {hours['borrowed']:.1f} borrowed, {hours['useful']:.1f} useful, "
        f"{hours['lost']:.1f} lost"
    )
    print(f"  {figures['rescales']} rescales; a job waited {figures['starvation_s']:.0f} s at most; ", end="")
    print(f"fairness {outcome.fairness:.3f}")
    print(
        f"  planner: {latency['calls']} calls, p50 {latency['p50_ms']:.1f} ms, p99 {latency['p99_ms']:.1f} ms; ", end=""
    )
    print(f"replayed in {figures['wall_s']:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
