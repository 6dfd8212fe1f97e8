"""Job mixes for simulation: lists of malleable jobs with their measured throughputs (`.json`, `.json.gz`)."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from scheduler.simulation.traces.intervals import BadTrace


@dataclass(frozen=True, slots=True)
class MixJob:
    """One malleable training job. `curve` maps width to samples per second and starts above width 0."""

    id: str
    min_width: int
    max_width: int
    curve: tuple[tuple[int, float], ...]
    samples: float  # to do in all
    rescale_up_s: float
    rescale_down_s: float
    submitted_s: float  # from the first job's submission

    @property
    def one_node_rate(self) -> float:
        """Samples per second at its smallest measured width, per node: the unit of its useful node-seconds."""
        width, rate = self.curve[0]
        return rate / width


def read_job_mix(path: Path) -> tuple[tuple[MixJob, ...], tuple[tuple[str, int], ...]]:
    """Read a mix; returns the jobs, and what was left out with counts. Raises `BadTrace`."""
    rows = _load(path)
    jobs: list[MixJob] = []
    without_curve = 0
    origin: datetime | None = None
    for index, row in enumerate(rows, 1):
        try:
            submitted = datetime.fromisoformat(row["Tsub"])
            origin = origin or submitted
            job = _job(row, (submitted - origin).total_seconds())
        except (KeyError, TypeError, ValueError) as error:
            raise BadTrace(path.name, None, f"job {index} of the list: {type(error).__name__}: {error}") from error
        if job is None:
            without_curve += 1
        else:
            jobs.append(job)
    if not jobs:
        raise BadTrace(path.name, None, "no job in it has a throughput curve")
    return tuple(jobs), (("jobs without a curve", without_curve),) if without_curve else ()


def _load(path: Path) -> list[Any]:
    try:
        raw = path.read_bytes()
        rows = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except FileNotFoundError as error:
        raise BadTrace(str(path), None, "no such file") from error
    except (EOFError, OSError) as error:
        raise BadTrace(path.name, None, "the gzip file is cut or damaged: fetch it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadTrace(path.name, getattr(error, "lineno", None), f"not JSON: {error}") from error
    if not isinstance(rows, list):
        raise BadTrace(path.name, 1, "a job mix is a JSON list of jobs")
    return rows


def _job(row: dict[str, Any], submitted_s: float) -> MixJob | None:
    points = [(int(n), float(p)) for n, p in zip(row["Ns"], row["Ps_samples_per_s"], strict=True) if n > 0]
    if not points or any(rate <= 0 for _, rate in points):
        return None
    return MixJob(
        id=str(row["job"]),
        min_width=int(row["Jmin"]),
        max_width=int(row["Jmax"]),
        curve=tuple(sorted(points)),
        samples=float(row["Pmax"]),
        rescale_up_s=float(row["Tcup_s"]),
        rescale_down_s=float(row["Tcdw_s"]),
        submitted_s=submitted_s,
    )
