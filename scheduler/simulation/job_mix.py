"""Job mixes for simulation: lists of malleable jobs with their measured throughputs (`.json`, `.json.gz`), and
Fallow's own job files (`.yaml`; several of them in one file are separated by `---`)."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from protocol.jobspec import InvalidSpec, JobSpec, parse
from scheduler.domain.jobs import JobKind, ModelShape, RescaleCosts, Role, RoleNeed
from scheduler.planning.curves import DEFAULT_EXPONENT
from scheduler.simulation.traces.intervals import BadTrace

Values = NDArray[np.float64]

FULL_CURVE = 64
"""Widths that a curve is drawn through for a job that comes without one."""

TRAINING_BYTES = 16
SERVING_BYTES = 4
"""Bytes a parameter takes in training and in serving, in fp32."""


@dataclass(frozen=True, slots=True)
class MixJob:
    """One malleable job. `curve` maps width to samples per second and starts above width 0."""

    id: str
    min_width: int
    max_width: int
    curve: tuple[tuple[int, float], ...]
    samples: float | None  # to do in all; None: it goes on for ever
    rescale_up_s: float
    rescale_down_s: float
    submitted_s: float  # from the first job's submission
    kind: JobKind = JobKind.TRAIN
    roles: tuple[RoleNeed, ...] = ()  # of a job that is not of trainers only
    weight: float = 1.0
    shape: ModelShape | None = None
    copies: int = 1

    @property
    def one_node_rate(self) -> float:
        """Samples per second at its smallest measured width, per node: the unit of its useful node-seconds."""
        width, rate = self.curve[0]
        return rate / width

    @property
    def needs(self) -> tuple[RoleNeed, ...]:
        """What to tell the scheduler of its workers."""
        return self.roles or (RoleNeed(Role.TRAINER, self.min_width, self.max_width),)

    def relative_rates(self) -> Values:
        """Rates at widths 0..max_width in units of its one-node rate; piecewise linear, 0 below its minimum."""
        points = [(0, 0.0), *self.curve]
        widths = np.arange(self.max_width + 1)
        rates = np.interp(widths, [w for w, _ in points], [r for _, r in points]) / self.one_node_rate
        rates[1 : self.min_width] = 0.0
        return rates


def default_mix(count: int) -> tuple[MixJob, ...]:
    """Equal endless training jobs for a replay without a job file: 1 to 64 nodes, stalls of half a second."""
    costs = RescaleCosts()
    return tuple(
        MixJob(f"job-{i}", 1, FULL_CURVE, _default_curve(FULL_CURVE), None, costs.up_s, costs.down_s, 0.0)
        for i in range(count)
    )


def _default_curve(max_width: int) -> tuple[tuple[int, float], ...]:
    return tuple((width, width**DEFAULT_EXPONENT) for width in range(1, max_width + 1))


def read_job_mix(path: Path) -> tuple[tuple[MixJob, ...], tuple[tuple[str, int], ...]]:
    """Read a mix; returns the jobs, and what was left out or assumed, with counts. Raises `BadTrace`."""
    if path.suffix in (".yaml", ".yml"):
        return _read_specs(path)
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
    raw = _read_bytes(path)
    try:
        rows = json.loads(gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)
    except (EOFError, OSError) as error:
        raise BadTrace(path.name, None, "the gzip file is cut or damaged: fetch it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadTrace(path.name, getattr(error, "lineno", None), f"not JSON: {error}") from error
    if not isinstance(rows, list):
        raise BadTrace(path.name, 1, "a job mix is a JSON list of jobs")
    return rows


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadTrace(str(path), None, "no such file") from error
    except OSError as error:
        raise BadTrace(str(path), None, f"cannot be read: {error.strerror}") from error


def _job(row: dict[str, Any], submitted_s: float) -> MixJob | None:
    points = [(int(n), float(p)) for n, p in zip(row["Ns"], row["Ps_samples_per_s"], strict=True) if n > 0]
    if not points or any(rate <= 0 for _, rate in points):
        return None
    job = MixJob(
        id=str(row["job"]),
        min_width=int(row["Jmin"]),
        max_width=int(row["Jmax"]),
        curve=tuple(sorted(points)),
        samples=float(row["Pmax"]),
        rescale_up_s=float(row["Tcup_s"]),
        rescale_down_s=float(row["Tcdw_s"]),
        submitted_s=submitted_s,
    )
    if not 1 <= job.min_width <= job.max_width:
        raise ValueError(f"Jmin {job.min_width} and Jmax {job.max_width} are no range of widths")
    if min(job.rescale_up_s, job.rescale_down_s, job.samples or 0.0) < 0:
        raise ValueError("a negative cost or amount of work")
    return job


# --- Fallow's own job files ------------------------------------------------------------------------------------


def _read_specs(path: Path) -> tuple[tuple[MixJob, ...], tuple[tuple[str, int], ...]]:
    try:
        documents = list(yaml.safe_load_all(_read_bytes(path)))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else None
        raise BadTrace(path.name, line, "not YAML: " + re.sub(r"\s+", " ", str(error))) from error
    jobs = []
    for index, document in enumerate(documents, 1):
        try:
            jobs.append(_of_spec(parse(document), index))
        except (InvalidSpec, TypeError) as error:
            raise BadTrace(path.name, None, f"job {index} of the file: {'; '.join(str(error).splitlines())}") from error
    if not jobs:
        raise BadTrace(path.name, None, "there is no job in it")
    return tuple(jobs), (("jobs whose scaling is assumed: a job file has no curve", len(jobs)),)


def _of_spec(spec: JobSpec, index: int) -> MixJob:
    costs = RescaleCosts()
    return MixJob(
        id=f"{spec.name}-{index}",
        min_width=spec.min_width,
        max_width=spec.max_width,
        curve=_default_curve(spec.max_width),
        samples=float(spec.train.steps * spec.train.global_batch) if spec.train else None,
        rescale_up_s=costs.up_s,
        rescale_down_s=costs.down_s,
        submitted_s=0.0,
        kind=JobKind(spec.kind),
        roles=_roles(spec),
        weight=spec.weight,
        shape=_shape(spec),
        copies=spec.serve.copies if spec.serve else 1,
    )


def _roles(spec: JobSpec) -> tuple[RoleNeed, ...]:
    if spec.serve is None:
        return () if spec.kind == "train" else (RoleNeed(Role.RUNNER, spec.min_width, spec.max_width),)
    return tuple(RoleNeed(Role(role), width.min, width.max) for role, width in spec.serve.roles.items())


def _shape(spec: JobSpec) -> ModelShape | None:
    model = spec.train.model if spec.train else spec.serve.shape if spec.serve else None
    if model is None:
        return None
    each = TRAINING_BYTES if spec.train else SERVING_BYTES
    return ModelShape(model.expert_layers, model.experts, model.expert_parameters * each, model.dense_parameters * each)
