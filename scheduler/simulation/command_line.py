"""What `python -m scheduler.simulation` (and so `fallow simulate`) can be asked."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLICIES = ("fallow", "bftrainer", "equal")


@dataclass(frozen=True, slots=True)
class Options:
    """See the help texts. Costs that are None are those of the job file."""

    trace: Path
    jobs: Path | None
    endless: bool
    parallel: int
    policy: str
    horizon_s: float
    rescale_up_s: float | None
    rescale_down_s: float | None
    warmup_s: float
    grace_s: float
    from_s: float
    to_s: float | None
    unknown_curves: bool
    json: Path | None
    timeline: Path | None
    report: Path | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; what cannot be understood ends the process with status 2 and a message."""
    return Options(**vars(_parser().parse_args(arguments)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fallow simulate",
        description="Replay a machine's own record of idle nodes through Fallow's control loop: what would it harvest?",
    )
    add = parser.add_argument
    add(
        "--trace",
        type=Path,
        required=True,
        metavar="FILE",
        help="idle intervals, SWF log, sacct output, or Fallow's own database",
    )
    add("--jobs", type=Path, metavar="FILE", help="job mix (.json, .json.gz) or Fallow job files (.yaml)")
    add("--endless", action="store_true", help="the first --parallel jobs run throughout and never finish")
    add("--parallel", type=_count, default=10, metavar="N", help="jobs at a time, default 10")
    add("--policy", choices=POLICIES, default="fallow", help="fallow: the live planner (default)")
    add("--horizon-s", type=_seconds, default=300.0, metavar="T", help="bftrainer's T_fwd, default 300")
    add("--rescale-up-s", type=_seconds, metavar="S", help="stall when a job gains a node; default: the job file's")
    add("--rescale-down-s", type=_seconds, metavar="S", help="stall when a job only loses nodes; default: same")
    add("--warmup-s", type=_seconds, default=0.0, metavar="S", help="a new node warms up so long beside its job")
    add("--grace-s", type=_seconds, default=0.0, metavar="S", help="notice before a node's idle interval ends")
    add("--from-s", type=_seconds, default=0.0, metavar="S", help="replay the trace from here")
    add("--to-s", type=_seconds, metavar="S", help="replay the trace up to here")
    add("--unknown-curves", action="store_true", help="the planner must learn how each job scales")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--timeline", type=Path, metavar="FILE.csv", help="write every hold of a node: t_s,job,node,event")
    add("--report", type=Path, metavar="FILE.html", help="write a page that shows them")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds: give 0 or more")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} jobs cannot run: give 1 or more")
    return value
