"""The planner's peer: the same problem as a mixed-integer program, solved by HiGHS.

Two programs have the same optimum:

- `by_width`: one binary for each job, pool and width. Nobody has published it for this problem; it is the stronger.
- `by_node` (BFTrainer, arXiv 2106.12091): one binary for each job and node of one pool; a job only grows or only
  shrinks. The published piecewise linear throughput has a value for each width here, so that both optimise the same.

HiGHS overruns its own time limit, so `solve` runs it in a process of its own and ends that.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import highspy
import numpy as np

from scheduler.planning.candidates import Candidate, Key

OVERRUN_S = 20.0
"""So much longer than its limit HiGHS may take, model and all."""


@dataclass(frozen=True, slots=True)
class Solved:
    """What HiGHS found: the best value (-inf for none) and bound, in so many seconds of the processor; `is_optimal` if
    it says so."""

    value: float
    bound: float
    seconds: float
    is_optimal: bool


@dataclass(slots=True)
class _Program:
    """Binaries, each with its worth and its place in rows `low <= sum <= high`."""

    worth: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    factors: list[float] = field(default_factory=list)
    bounds: list[tuple[float, float]] = field(default_factory=list)

    def row(self, low: float, high: float) -> int:
        self.bounds.append((low, high))
        return len(self.bounds) - 1

    def binary(self, worth: float, places: Mapping[int, float]) -> None:
        self.worth.append(worth)
        self.starts.append(len(self.rows))
        self.rows += places
        self.factors += places.values()

    def solve(self, constant: float, limit_s: float) -> Solved:
        if not self.worth:
            return Solved(constant, constant, 0.0, True)
        solver = highspy.Highs()
        solver.silent()
        for option, value in (("time_limit", limit_s), ("mip_rel_gap", 1e-9), ("threads", 1)):
            solver.setOptionValue(option, value)
        solver.passModel(self._model())
        began_s = time.process_time()
        solver.run()
        took_s, info = time.process_time() - began_s, solver.getInfo()
        is_optimal = solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        has_solution = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
        value = info.objective_function_value + constant if has_solution else float("-inf")
        return Solved(value, info.mip_dual_bound + constant, took_s, is_optimal)

    def _model(self) -> highspy.HighsLp:
        count, model = len(self.worth), highspy.HighsLp()
        model.num_col_, model.num_row_ = count, len(self.bounds)
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_, model.col_lower_, model.col_upper_ = np.array(self.worth), np.zeros(count), np.ones(count)
        model.row_lower_ = np.array([low for low, _ in self.bounds])
        model.row_upper_ = np.array([high for _, high in self.bounds])
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.array([*self.starts, len(self.rows)], dtype=np.int32)
        model.a_matrix_.index_ = np.array(self.rows, dtype=np.int32)
        model.a_matrix_.value_ = np.array(self.factors)
        model.integrality_ = [highspy.HighsVarType.kInteger] * count
        return model


def by_width(candidates: Sequence[Candidate], capacities: Mapping[Key, int], limit_s: float) -> Solved:
    """See the module. Whoever gets nothing stops."""
    program = _Program()
    pools = {key: program.row(-np.inf, capacity) for key, capacity in sorted(capacities.items())}
    for candidate in candidates:
        one = program.row(-np.inf, 1.0)
        for key, width, value in _widths(candidate, capacities):
            program.binary(value - candidate.stopped, {one: 1.0, pools[key]: float(width)})
    return program.solve(sum(candidate.stopped for candidate in candidates), limit_s)


def _widths(candidate: Candidate, capacities: Mapping[Key, int]) -> Iterator[tuple[Key, int, float]]:
    for key, demand in candidate.demands.items():
        for width, value in enumerate(demand.values.tolist(), start=demand.first):
            if width <= capacities[key]:
                yield key, width, value


def by_node(candidates: Sequence[Candidate], now: Sequence[int], capacity: int, limit_s: float) -> Solved:
    """See the module. `now`: how many nodes each job has; they are the first ones, job by job."""
    program = _Program()
    nodes = [program.row(-np.inf, 1.0) for _ in range(capacity)]
    first_J = np.concatenate([[0], np.cumsum(now)])
    for job, candidate in enumerate(candidates):
        own = range(int(first_J[job]), int(first_J[job + 1]))
        one, count = program.row(-np.inf, 1.0), program.row(0.0, 0.0)
        # a job that grows keeps all of its own nodes; one that does not takes no others
        kept, gained = program.row(0.0, np.inf), program.row(-np.inf, 0.0)
        program.binary(0.0, {kept: -float(len(own)), gained: -float(capacity)})
        for _, width, value in _widths(candidate, {next(iter(candidate.demands)): capacity}):
            program.binary(value - candidate.stopped, {one: 1.0, count: -float(width)})
        for node in range(capacity):
            program.binary(0.0, {nodes[node]: 1.0, count: 1.0, kept if node in own else gained: 1.0})
    return program.solve(sum(candidate.stopped for candidate in candidates), limit_s)


Solver = Callable[..., Solved]


def solve(program: Solver, *arguments: object, limit_s: float) -> Solved:
    """`by_width` or `by_node` in a process of its own, which is ended if it takes far longer than `limit_s`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, program, arguments, limit_s))
    child.start()
    try:
        if ours.poll(limit_s + OVERRUN_S):
            return _received(ours)
        return Solved(float("-inf"), float("inf"), limit_s + OVERRUN_S, False)
    finally:
        child.kill()
        child.join()


def _received(answer: Connection) -> Solved:
    found = answer.recv()
    assert isinstance(found, Solved)
    return found


def _child(answer: Connection, program: Solver, arguments: Sequence[object], limit_s: float) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # HiGHS greets whoever starts it
    answer.send(program(*arguments, limit_s))
