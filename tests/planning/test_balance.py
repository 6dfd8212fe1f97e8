"""Placement of expert copies: the laws hold for any loads and hosts; balance is good; little moves, noise nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.eplb import eplb
from bench.experts import even_hosts, halves, read_routing, tokens_per_expert
from scheduler.planning.balance import Hosts, balance, busyness, expected_loads
from scheduler.planning.packing import Bools, Floats

ROUTING = Path(__file__).parents[3] / "shared" / "data" / "moe" / "deepseek_v2_lite_routing_intent_law.npz"
recorded = pytest.mark.skipif(
    not ROUTING.exists(), reason="the recorded routing is not on this machine (../shared/data)"
)


@st.composite
def loads(draw: st.DrawFn) -> Floats:
    """[L, E]; some pairs get nothing."""
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(1, 16))
    seed, spread = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.0, 0.7, 1.5]))
    rng = np.random.default_rng(seed)
    return rng.lognormal(0.0, spread, (layers, experts)) * (rng.random((layers, experts)) > draw(st.floats(0.0, 0.3)))


@st.composite
def workers(draw: st.DrawFn, slots: st.SearchStrategy[int]) -> Hosts:
    """Some share a node, and some nodes a cohort; slots and speeds are uneven."""
    count = draw(st.integers(1, 8))
    each = st.lists(st.integers(0, 6), min_size=count, max_size=count)
    node_W, cohort_of = np.array(draw(each)), np.array(draw(st.lists(st.integers(0, 3), min_size=7, max_size=7)))
    slots_W = np.array([draw(slots) for _ in range(count)])
    speed_W = np.array([draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in range(count)])
    return Hosts(slots_W, speed_W, node_W, cohort_of[node_W])


AMPLE = st.just(10_000)
ANY = st.integers(0, 60)


def groups(host_LEW: Bools, group_W: np.typing.NDArray[np.int64]) -> np.typing.NDArray[np.int64]:
    """On how many nodes, or in how many cohorts, each pair lies [L, E]."""
    return sum(host_LEW[:, :, group_W == group].any(axis=2).astype(np.int64) for group in np.unique(group_W))


def check_allowed(host_LEW: Bools, hosts: Hosts) -> None:
    """Nobody hosts more than it can, and no node a pair twice."""
    assert (host_LEW.sum(axis=(0, 1)) <= hosts.slots_W).all()
    assert (groups(host_LEW, hosts.node_W) == host_LEW.sum(axis=2)).all()


def check_whole(host_LEW: Bools, hosts: Hosts, floor: int) -> None:
    """Every pair has its floor of copies, and no two of its copies share a cohort while there is another."""
    copies_LE = host_LEW.sum(axis=2)
    assert (copies_LE >= min(floor, len(np.unique(hosts.node_W)))).all()
    assert (groups(host_LEW, hosts.cohort_W) == np.minimum(copies_LE, len(np.unique(hosts.cohort_W)))).all()


def moved(after_LEW: Bools, before_LEW: Bools) -> int:
    """Copies that are new, besides first copies."""
    first_LE = after_LEW.any(axis=2) & ~before_LEW.any(axis=2)
    return int((after_LEW & ~before_LEW).sum() - first_LE.sum())


# --- laws ------------------------------------------------------------------------------------------------------


@given(loads(), workers(ANY), st.integers(1, 3))
@settings(deadline=None)
def test_nobody_hosts_too_much_and_no_node_a_pair_twice(load_LE: Floats, hosts: Hosts, floor: int) -> None:
    host_LEW = balance(load_LE, hosts, floor=floor)
    check_allowed(host_LEW, hosts)
    assert (host_LEW == balance(load_LE, hosts, floor=floor)).all(), "the same input gives the same placement"


@given(loads(), workers(AMPLE), st.integers(1, 3))
@settings(deadline=None)
def test_with_ample_memory_every_pair_has_its_copies_apart(load_LE: Floats, hosts: Hosts, floor: int) -> None:
    wanted = floor * load_LE.size
    host_LEW = balance(load_LE, hosts, floor=floor, copies=wanted)
    check_whole(host_LEW, hosts, floor)
    assert host_LEW.sum() <= wanted
    assert (balance(load_LE, hosts, host_LEW, floor=floor, copies=wanted) == host_LEW).all(), "what is well stays"


@given(loads(), st.integers(1, 8), st.integers(1, 3))
@settings(deadline=None)
def test_slots_that_just_suffice_do(load_LE: Floats, nodes: int, floor: int) -> None:
    floor = min(floor, nodes)
    hosts = even_hosts(nodes, slots=-(-load_LE.size * floor // nodes))
    assert (balance(load_LE, hosts, floor=floor).sum(axis=2) >= floor).all()


@given(loads(), workers(ANY), st.integers(1, 3), st.integers(0, 12), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_budget_is_kept_and_nothing_gets_worse(
    load_LE: Floats, hosts: Hosts, floor: int, budget: int, seed: int
) -> None:
    before_LEW = balance(load_LE, hosts, floor=floor)
    load_LE = load_LE * np.random.default_rng(seed).lognormal(0.0, 0.7, load_LE.shape)
    after_LEW = balance(load_LE, hosts, before_LEW, floor=floor, budget=budget)
    check_allowed(after_LEW, hosts)
    assert moved(after_LEW, before_LEW) <= budget
    hosted_L, were_L = (p_LEW.any(axis=2).sum(axis=1) for p_LEW in (after_LEW, before_LEW))
    assert (hosted_L >= were_L).all(), "no fewer pairs have a copy"
    least_LE = np.minimum(before_LEW.sum(axis=2), floor)
    apart_LE = groups(before_LEW, hosts.cohort_W) == np.minimum(before_LEW.sum(axis=2), len(np.unique(hosts.cohort_W)))
    whole_L = (least_LE >= min(floor, len(np.unique(hosts.node_W)))).all(axis=1) & apart_LE.all(axis=1)
    busiest_L, was_L = (busyness(p, load_LE, hosts.speed_W).max(axis=1) for p in (after_LEW, before_LEW))
    assert (busiest_L <= was_L + 1e-9)[whole_L].all()


@given(loads(), st.integers(3, 8), st.integers(0, 7))
@settings(deadline=None)
def test_a_lost_worker_takes_little_along(load_LE: Floats, nodes: int, lost: int) -> None:
    copies = 2 * load_LE.size
    host_LEW = balance(load_LE, even_hosts(nodes, 10_000), floor=2, copies=copies)
    left_LEW = np.delete(host_LEW, lost % nodes, axis=2)
    hosts = even_hosts(nodes - 1, 10_000)
    after_LEW = balance(load_LE, hosts, left_LEW, floor=2, copies=copies)
    check_whole(after_LEW, hosts, 2)
    before, after = (busyness(p, load_LE, hosts.speed_W).max() for p in (left_LEW, after_LEW))
    assert (left_LEW & ~after_LEW).sum() <= left_LEW.sum() // 4 or after < before


# --- what they are good for ------------------------------------------------------------------------------------


def test_scarce_memory_gives_every_expert_one_copy_before_any_gets_two() -> None:
    host_LEW = balance(np.ones((1, 10)), even_hosts(3, slots=4), floor=2)
    assert host_LEW.any(axis=2).all()
    crowded_LEW = np.zeros((1, 6, 3), dtype=np.bool_)
    crowded_LEW[0, :3, :2] = True  # three experts twice, three nowhere, and room for six copies
    assert balance(np.ones((1, 6)), even_hosts(3, slots=2), crowded_LEW, floor=2).any(axis=2).all()


def test_few_replica_sets_outlive_more_deaths() -> None:
    rng = np.random.default_rng(0)
    host_EW = balance(rng.lognormal(0.0, 0.7, (1, 256)), even_hosts(32, slots=20), floor=2)[0]
    deaths = [rng.choice(32, 4, replace=False) for _ in range(500)]
    outlived = np.mean([np.delete(host_EW, dead_D, axis=1).any(axis=1).all() for dead_D in deaths])
    assert outlived > 0.7, "copies spread at random outlive none of them"


def test_load_follows_speed() -> None:
    hosts = Hosts(np.array([64, 32, 32]), np.array([2.0, 1.0, 1.0]), np.arange(3), np.arange(3))
    load_LE = np.random.default_rng(0).lognormal(0.0, 0.5, (4, 24))
    assert busyness(balance(load_LE, hosts), load_LE, hosts.speed_W).max() < 1.03


@pytest.mark.parametrize("spread", [0.3, 0.7, 1.2])
@pytest.mark.parametrize(("experts", "nodes", "slots"), [(64, 8, 80), (64, 8, 128), (256, 32, 288)])
def test_even_slots_are_balanced_as_by_eplb(spread: float, experts: int, nodes: int, slots: int) -> None:
    load_LE = np.random.default_rng(0).lognormal(0.0, spread, (8, experts))
    hosts = even_hosts(nodes, slots * len(load_LE) // nodes)
    ours_L = busyness(balance(load_LE, hosts), load_LE, hosts.speed_W).max(axis=1)
    peer_LED = eplb(load_LE, slots, nodes)
    peer_LD = np.einsum("le,led->ld", load_LE / peer_LED.sum(axis=2), peer_LED)
    assert (ours_L <= 1.01 * peer_LD.max(axis=1) / peer_LD.mean(axis=1)).all()


@recorded
@pytest.mark.parametrize("task", ["intent", "law"])
def test_tokens_that_were_not_counted_are_balanced_too(task: str) -> None:
    worst = []
    for counted_LTK, other_LTK in halves(read_routing(ROUTING, task), splits=20):
        load_LE = tokens_per_expert(counted_LTK)
        host_LEW = balance(expected_loads(load_LE), even_hosts(8, slots=10 * len(load_LE)))
        worst.append(busyness(host_LEW, tokens_per_expert(other_LTK), np.ones(8)).max(axis=1))
    assert np.mean(worst) <= 1.06
    assert np.median(np.max(worst, axis=1)) <= 1.10, "in the worst of 26 layers"


@recorded
def test_noise_moves_nothing_to_speak_of() -> None:
    load_LE = tokens_per_expert(read_routing(ROUTING, "law").ids_LTK)
    hosts = even_hosts(8, slots=10 * len(load_LE))
    host_LEW = balance(expected_loads(load_LE), hosts)
    rng = np.random.default_rng(0)
    for _ in range(5):
        noisy_LE = load_LE * rng.normal(1.0, 0.02, load_LE.shape)
        assert moved(balance(expected_loads(noisy_LE), hosts, host_LEW), host_LEW) <= 0.05 * host_LEW.sum()
