"""The one form in which every benchmark reports: rows of figure, ours, peer, ratio, goal, and whether it holds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is ours / peer; `holds` is None where no goal was set."""

    figure: str
    unit: str
    ours: float
    peer_name: str
    peer: float | None
    ratio: float | None
    goal: str
    holds: bool | None


def row(
    figure: str,
    unit: str,
    ours: float,
    peer_name: str = "",
    peer: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    of: Literal["ratio", "ours"] = "ours",
) -> Row:
    """A row whose goal is a bound on `ours`, or on ours / peer. Raises ValueError for a ratio without a peer."""
    ratio = ours / peer if peer else None
    judged = ours if of == "ours" else ratio
    if judged is None:
        raise ValueError(f"{figure}: a goal on the ratio needs a peer's figure")
    bounds = ((">=", at_least), ("<=", at_most))
    goals = [f"{of} {sign} {bound:g}" for sign, bound in bounds if bound is not None]
    holds = (at_least is None or judged >= at_least) and (at_most is None or judged <= at_most) if goals else None
    return Row(figure, unit, ours, peer_name, peer, ratio, " and ".join(goals), holds)


def median_of(rounds: int, measure: Callable[[], float]) -> float:
    """Median of `rounds` measurements."""
    return statistics.median(measure() for _ in range(rounds))


def machine() -> str:
    """What this ran on, without naming the host."""
    gpu = f", {name}" if (name := _gpu_model()) else ""
    return f"{platform.machine()}, {os.cpu_count()} cores, {_cpu_model()}{gpu}, Python {platform.python_version()}"


def _gpu_model() -> str:
    """Empty without one that the benchmark could have used."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.system())


def argument_parser(description: str) -> argparse.ArgumentParser:
    """A parser that knows `--json FILE`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file")
    return parser


def publish(bench: str, rows: Sequence[Row], json_file: Path | None) -> None:
    """Print the rows as a table and write them to `json_file` if one was asked for."""
    print(f"{bench} on {machine()}")
    for r in rows:
        peer = (
            f"{r.peer_name} {r.peer:.4g} {r.unit}, ratio {r.ratio:.3g}"
            if r.peer is not None and r.ratio
            else r.peer_name
        )
        verdict = {True: "holds", False: "MISSED", None: ""}[r.holds]
        print(f"  {r.figure}: {r.ours:.4g} {r.unit}; {peer}; {r.goal} {verdict}".rstrip("; "))
    if json_file is not None:
        document = {"bench": bench, "machine": machine(), "rows": [asdict(r) for r in rows]}
        json_file.write_text(json.dumps(document, indent=2) + "\n")
