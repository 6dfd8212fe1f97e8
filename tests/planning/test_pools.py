"""Jobs that could run on several kinds of device: as good as the mixed-integer program, and never beyond the bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.mixed_integer import by_node, by_width
from scheduler.domain.jobs import RescaleCosts
from scheduler.planning.allocation import Demand, allocate
from scheduler.planning.candidates import Candidate, Key, Pooling
from scheduler.planning.markets import prices_of
from scheduler.planning.pooling import choose_pools
from scheduler.planning.sharpening import sharpen
from scheduler.planning.worth import Position, width_values

LIMIT_S = 60.0


def instance(seed: int, jobs: int, pools: int, most: int, widest: int) -> tuple[list[Candidate], dict[Key, int]]:
    """Jobs with gangs, weights, curves and speeds of their own on each kind; some already run somewhere."""
    rng = np.random.default_rng(seed)
    capacities = {(f"s{pool // 2}", f"k{pool}"): int(rng.integers(1, most + 1)) for pool in range(pools)}
    return [_candidate(rng, list(capacities), widest) for _ in range(jobs)], capacities


def _candidate(rng: np.random.Generator, keys: list[Key], widest: int) -> Candidate:
    widest = int(rng.integers(1, widest + 1))
    first, exponent, weight = int(rng.integers(1, widest // 2 + 2)), rng.uniform(0.4, 1.0), rng.choice([0.5, 1, 1, 4])
    usable = [key for key in keys if rng.random() < 0.75] or keys[:1]
    widths = np.arange(first, widest + 1)
    demands = {
        key: Demand(first, weight * rng.uniform(0.2, 1.0) * widths**exponent * rng.uniform(0.8, 1.0, len(widths)))
        for key in usable
    }
    return Candidate(demands, float(rng.choice([0.0, 0.0, -0.2, 0.3])))


def counted(candidates: list[Candidate], capacities: dict[Key, int], found: Pooling) -> float:
    """What the widths that were found are worth, once they have been seen to fit."""
    used = dict.fromkeys(capacities, 0)
    for pool, width in zip(found.pools, found.widths, strict=True):
        used[pool] += width
    assert all(used[key] <= capacity for key, capacity in capacities.items())
    return sum(c.worth(p, w) for c, p, w in zip(candidates, found.pools, found.widths, strict=True))


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_small_ones_are_the_optimum_of_the_mixed_integer_program(seed: int, jobs: int, pools: int) -> None:
    candidates, capacities = instance(seed, jobs, pools, 12, 10)
    found, best = choose_pools(candidates, capacities), by_width(candidates, capacities, LIMIT_S)
    assert best.is_optimal
    assert counted(candidates, capacities, found) == pytest.approx(found.value)
    assert found.value >= best.value - 0.01 * abs(best.value), "within 1 %, whatever happens"
    assert best.value <= found.bound + 1e-6
    assert found.value == pytest.approx(best.value, abs=1e-6), "and here the optimum"
    assert found.gap < 1e-6


@pytest.mark.parametrize("seed", range(4))
def test_larger_ones_are_within_one_per_cent(seed: int) -> None:
    candidates, capacities = instance(seed, 40, 4, 60, 24)
    found, best = choose_pools(candidates, capacities), by_width(candidates, capacities, 10.0)
    assert counted(candidates, capacities, found) == pytest.approx(found.value)
    assert best.value * 0.99 <= found.value <= found.bound
    assert best.value <= found.bound + 1e-6


def gangs(seed: int, jobs: int, pools: int, nodes: int, widest: int) -> tuple[list[Candidate], dict[Key, int]]:
    """Jobs of which none runs on less than half of its widest, so that pools are seldom filled to the last node."""
    rng = np.random.default_rng(seed)
    keys = [("s", f"k{pool}") for pool in range(pools)]
    shares = rng.dirichlet(np.full(pools, 5.0))
    capacities = {key: max(1, round(nodes * share)) for key, share in zip(keys, shares, strict=True)}
    candidates = []
    for _ in range(jobs):
        most = int(rng.integers(max(2, widest // 2), widest + 1))
        widths, weight = np.arange(most // 2, most + 1), float(rng.choice([0.5, 1, 1, 2]))
        usable = [key for key in keys if rng.random() < 0.75] or keys[:1]
        values = weight * widths ** rng.uniform(0.4, 1.0)
        demands = {key: Demand(most // 2, values * rng.uniform(0.2, 1.3)) for key in usable}
        candidates.append(Candidate(demands, float(rng.choice([0.0, 0.0, -0.2]))))
    return candidates, capacities


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("jobs", "pools", "nodes", "widest"), [(40, 4, 200, 40), (20, 5, 300, 100)])
def test_wide_gangs_are_within_one_per_cent_and_the_bound_says_so(
    seed: int, jobs: int, pools: int, nodes: int, widest: int
) -> None:
    candidates, capacities = gangs(seed, jobs, pools, nodes, widest)
    found, best = choose_pools(candidates, capacities), by_width(candidates, capacities, 20.0)
    assert counted(candidates, capacities, found) == pytest.approx(found.value)
    assert best.is_optimal
    assert best.value * 0.99 <= found.value <= found.bound
    assert best.value <= found.bound + 1e-6
    assert found.gap <= 0.01 * found.bound


@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 4))
@settings(max_examples=30, deadline=None)
@example(247639, 2, 2)  # of two pools one is of no use to anybody
def test_the_sharper_bound_is_a_bound(seed: int, jobs: int, pools: int) -> None:
    candidates, capacities = gangs(seed, jobs, pools, 30, 12)
    best = by_width(candidates, capacities, LIMIT_S)
    prices = prices_of(candidates, capacities)
    nothing = Pooling(tuple(next(iter(c.demands)) for c in candidates), (0,) * jobs, -1e9, prices.bound)
    found = sharpen(candidates, prices, nothing, lambda own_J: nothing, 0.0)
    assert best.value - 1e-6 <= found.bound <= prices.bound + 1e-6


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_those_that_must_run_do_where_there_is_room_for_all(seed: int, must: int) -> None:
    candidates, capacities = instance(seed, 6, 3, 12, 8)
    roomy = {key: capacity + sum(_floor(c) for c in candidates[:must]) for key, capacity in capacities.items()}
    forced = [Candidate(c.demands, -50.0, must_run=number < must) for number, c in enumerate(candidates)]
    found = choose_pools(forced, roomy)
    assert all(width > 0 for width in found.widths[:must])


def _floor(candidate: Candidate) -> int:
    return max(demand.first for demand in candidate.demands.values())


@given(st.integers(0, 10**6), st.integers(1, 10), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_one_pool_is_the_optimum_of_the_mixed_integer_program(seed: int, jobs: int, capacity: int) -> None:
    (key,) = keys = [("s", "k")]
    rng = np.random.default_rng(seed)
    candidates = [_candidate(rng, keys, 16) for _ in range(jobs)]
    found = allocate([candidate.demand(key) for candidate in candidates], capacity)
    best = by_width(candidates, {key: capacity}, LIMIT_S)
    assert found is not None
    assert best.is_optimal
    assert found.value == pytest.approx(best.value, abs=1e-6)
    assert found.gap < 1e-6


@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(4, 9))
@settings(max_examples=25, deadline=None)
def test_the_published_program_has_the_same_optimum(seed: int, jobs: int, nodes: int) -> None:
    """One binary for each job and node, a job only growing or only shrinking; the planner's own worth of each width,
    with stalls that run, losses and starts."""
    rng = np.random.default_rng(seed)
    now = [int(n) for n in rng.multinomial(int(rng.integers(0, nodes + 1)), np.full(jobs, 1 / jobs))]
    candidates = [_weighed(rng, kept, nodes) for kept in now]
    best = by_node(candidates, now, nodes, LIMIT_S)
    found = allocate([candidate.demand(("s", "k")) for candidate in candidates], nodes)
    assert best.is_optimal
    assert found is not None
    assert found.value == pytest.approx(best.value, abs=1e-6)
    assert found.gap < 1e-6


def _weighed(rng: np.random.Generator, kept: int, nodes: int) -> Candidate:
    """A job that keeps so many workers."""
    useful = np.arange(nodes + 1) ** rng.uniform(0.4, 1.0)
    costs = RescaleCosts(float(rng.uniform(0, 60)), float(rng.uniform(0, 30)))
    at = Position(kept, kept + int(rng.integers(0, 2)), float(rng.choice([0.0, 5.0, 40.0])) if kept else 0.0)
    values = width_values(useful, at, costs, float(rng.uniform(30, 600)), float(rng.choice([0.5, 1.0, 4.0])))
    return Candidate({("s", "k"): Demand(1, values[1:])}, float(values[0]))


def test_a_job_may_grow_by_more_than_half_of_the_pool_at_once() -> None:
    """The published bound on migration, nodes + 1, forbids it; twice the nodes and one is right."""
    candidate = Candidate({("s", "k"): Demand(1, np.arange(1.0, 11.0))}, 0.0)
    assert by_node([candidate], [1], 10, LIMIT_S).value == pytest.approx(10.0)
    assert allocate([candidate.demand(("s", "k"))], 10).widths == (10,)  # type: ignore[union-attr]


def test_several_kinds_give_the_same_answer_whatever_the_order_of_jobs() -> None:
    candidates, capacities = instance(7, 8, 3, 12, 8)
    found, turned = choose_pools(candidates, capacities), choose_pools(candidates[::-1], capacities)
    assert found.value == pytest.approx(turned.value)
    assert found == choose_pools(candidates, capacities)
