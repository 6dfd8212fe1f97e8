"""Cohort, neighbourhood and hour change a lease's chances as far as they have proven to, and not before."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState
from scheduler.domain.plan import Factors, Outlook
from scheduler.inventory.past import LEARN_EVERY_S, SitePast
from scheduler.planning.lasting import Lasting
from scheduler.planning.surroundings import HOUR_S, HOURS, NONE, factor_of, factor_of_hours, neighbourhood

DAY_S = HOURS * HOUR_S
factors_by_name = st.dictionaries(st.sampled_from(["c", "n0*", "x"]), st.floats(0.05, 20))
some_factors = st.builds(
    Factors,
    factors_by_name,
    factors_by_name,
    st.one_of(st.just(()), st.lists(st.floats(0.05, 20), min_size=HOURS, max_size=HOURS).map(tuple)),
)


def lease(number: int, started_s: float, node: str = "n0", cohort: str = "c") -> Lease:
    return Lease(LeaseKey(node, number + 1), "s", LeaseState.READY, (), "", started_s, cohort)


Rate = Callable[[Lease, float], float]


def lived(
    rate: Rate, days: float, seed: int = 1, nodes: int = 40, gone: list[Lease] | None = None
) -> tuple[SitePast, list[Lease], float]:
    """A site whose nodes are taken at a rate of their own: what it learns, who is left at the end, and when that is.

    `gone`: gets the leases that ended, as a store keeps them.
    """
    rng, past, live = random.Random(seed), SitePast(), dict[str, Lease]()
    number, step_s, now_s = 0, 60.0, 0.0
    while now_s < days * DAY_S:
        now_s += step_s
        for node, of in list(live.items()):
            if rng.random() < rate(of, now_s) * step_s:
                past.ended(live.pop(node), now_s, "owner")
                if gone is not None:
                    gone.append(replace(of, state=LeaseState.ENDED, ended_s=now_s, end_cause="owner"))
        for index in range(nodes):
            node = f"n{index}"
            if node not in live and rng.random() < 0.2:
                live[node] = lease(number, now_s, node, f"c{int(now_s // HOUR_S)}")
                past.opened(now_s)
                number += 1
        past.outlook("s", now_s, live.values())
    return past, list(live.values()), now_s


@given(some_factors, st.floats(0, 1e6), st.floats(0, 1e5), st.floats(1, 1e5))
def test_chances_stay_chances_and_only_fall_with_time(
    factors: Factors, age_s: float, near_s: float, more_s: float
) -> None:
    here = lease(0, 0.0)
    lasting = Lasting(age_s, [Outlook("s", 300.0, factors=factors)])
    assert lasting.chance(here, 0.0) == 1
    assert 0 <= lasting.chance(here, near_s + more_s) <= 1
    if not factors.hour and not factors.cohort and not factors.neighbourhood:
        assert lasting.chance(here, near_s + more_s) == Lasting(age_s).chance(here, near_s + more_s)


@given(some_factors, st.floats(0, 1e6), st.floats(0.01, 1e5))
def test_an_effect_lies_between_none_and_what_was_seen(factors: Factors, now_s: float, for_s: float) -> None:
    seen = [factors.cohort.get("c", 1.0), factors.neighbourhood.get("n0*", 1.0)]
    least, most = (min(1.0, seen[0]) * min(1.0, seen[1]), max(1.0, seen[0]) * max(1.0, seen[1]))
    assert least - 1e-9 <= factor_of(lease(0, 0.0), factors, for_s) <= most + 1e-9
    hours = factors.hour or (1.0,)
    assert min(*hours, 1.0) - 1e-9 <= factor_of_hours(factors, now_s, for_s) <= max(*hours, 1.0) + 1e-9


def test_an_effect_of_late_fades_in_time_to_come() -> None:
    factors = Factors(neighbourhood={"n0*": 3.0})
    assert factor_of(lease(0, 0.0), factors, 1.0) == pytest.approx(3.0, abs=0.01)
    assert 1.0 < factor_of(lease(0, 0.0), factors, 36_000.0) < 1.1


def test_neighbours_are_told_by_their_names() -> None:
    assert neighbourhood("a01n03") == neighbourhood("a01n15") != neighbourhood("a01n16")
    assert neighbourhood("a01n03") != neighbourhood("a02n03")
    assert neighbourhood("gpu3.site.org") == neighbourhood("gpu7.site.org")
    assert neighbourhood("login") == "login"


def test_where_nothing_but_age_counts_nothing_else_gets_an_effect() -> None:
    past, _, _ = lived(lambda of, now_s: 1 / 1800, days=2.5)
    assert set(past.surroundings.beliefs().values()) == {NONE}
    assert past.factors == Factors()


def test_hours_in_which_nodes_are_taken_are_learnt() -> None:
    """By day a node is taken in a quarter of an hour, by night in three hours."""

    def by_day(of: Lease, now_s: float) -> float:
        return 1 / 900 if 8 <= now_s // HOUR_S % HOURS < 18 else 1 / 10_800

    past, live, now_s = lived(by_day, days=4.0)
    assert past.surroundings.beliefs()["hour"] < NONE
    assert min(past.factors.hour[9:17]) > 1.2 > 0.7 > max(past.factors.hour[:7])
    outlook = past.outlook("s", now_s, live)
    night, day = (Lasting(5 * DAY_S + hour * HOUR_S, [outlook]) for hour in (2, 10))
    fresh = (lease(0, 5 * DAY_S + hour * HOUR_S) for hour in (2, 10))
    assert night.chance(next(fresh), 1800.0) > day.chance(next(fresh), 1800.0) + 0.2


@pytest.mark.parametrize("is_restless", [True, False])
def test_what_was_learnt_is_learnt_again_after_a_restart(is_restless: bool) -> None:
    """From the leases alone that a store keeps: hours, beliefs, the forecast by age and how it came true."""

    def by_day(of: Lease, now_s: float) -> float:
        return 1 / 900 if is_restless and 8 <= now_s // HOUR_S % HOURS < 18 else 1 / 7200

    gone: list[Lease] = []
    past, live, now_s = lived(by_day, days=4.0, gone=gone)
    again = SitePast()
    again.restore([*gone[::2], *live, *gone[1::2]])
    before, after = past.outlook("s", now_s, live), again.outlook("s", now_s, live)
    assert after.gap_s == pytest.approx(before.gap_s)
    assert after.hazard_per_s == pytest.approx(before.hazard_per_s, rel=0.02)
    assert again.surroundings.beliefs() == past.surroundings.beliefs()
    assert bool(before.factors.hour) is is_restless
    assert after.factors.hour == pytest.approx(before.factors.hour, rel=0.05)
    for one, other in zip(again.foretold.calibration(), past.foretold.calibration(), strict=True):
        assert one.predicted == pytest.approx(other.predicted, abs=0.02)
        assert one.observed == pytest.approx(other.observed, abs=0.02)


def test_a_neighbourhood_that_is_being_taken_is_learnt() -> None:
    """For three hours at a time its owner takes from one run of sixteen nodes after another."""
    turn_s = 3 * HOUR_S

    def busy(of: Lease, now_s: float) -> float:
        return 1 / 300 if int(of.key.node[1:]) // 16 == int(now_s // turn_s) % 3 else 1 / 7200

    past, live, now_s = lived(busy, days=2.4, nodes=48)
    assert past.surroundings.beliefs()["neighbourhood"] < NONE
    outlook = past.outlook("s", now_s, live)
    factors = outlook.factors.neighbourhood
    in_turn = f"n{int((now_s - LEARN_EVERY_S) // turn_s) % 3}*"
    assert all((factor > 1.0) == (name == in_turn) for name, factor in factors.items())


def test_cohorts_that_differ_are_learnt() -> None:
    """Who came in an even hour stays ten times as long."""

    def apart(of: Lease, now_s: float) -> float:
        return 1 / 14_400 if int(of.cohort[1:]) % 2 == 0 else 1 / 1440

    past, _, _ = lived(apart, days=3.0)
    assert past.surroundings.beliefs()["cohort"] < NONE


def test_what_we_gave_back_ourselves_is_no_end() -> None:
    one, other = SitePast(), SitePast()
    for past, cause in ((one, "owner"), (other, "drained")):
        for number in range(50):
            past.ended(lease(number, 0.0), 500.0, cause)
    ends = [past.surroundings._groups["cohort"]["c"].ends for past in (one, other)]
    assert ends == [50.0, 0.0]
