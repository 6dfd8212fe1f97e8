"""A running scheduler says whether its forecast is right."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState
from scheduler.inventory.foretold import Foretold
from scheduler.inventory.past import LEARN_EVERY_S, SitePast
from scheduler.planning.lasting import Lasting


def lease(number: int, started_s: float) -> Lease:
    return Lease(LeaseKey(f"n{number}", number + 1), "s", LeaseState.READY, (), "", started_s, "c")


def test_a_site_with_lives_as_learnt_is_well_calibrated() -> None:
    rng, past, live = random.Random(1), SitePast(), dict[int, tuple[Lease, float]]()
    number = 0
    for step in range(1500):
        now_s = 60.0 * step
        for key in [key for key, (_, end_s) in live.items() if end_s <= now_s]:
            past.ended(live.pop(key)[0], now_s, "owner")
        while len(live) < 30:
            live[number] = lease(number, now_s), now_s + rng.expovariate(1 / 1200)
            past.opened(now_s)
            number += 1
        past.outlook("s", now_s, (of for of, _ in live.values()))
    found = past.foretold.calibration()
    assert [of.horizon_s for of in found] == [60.0, 300.0, 900.0, 3600.0]
    for of in found:
        assert of.asked > 1000
        assert of.predicted == pytest.approx(of.observed, abs=0.06)


def test_what_became_of_each_lease_is_counted_once_it_is_known() -> None:
    foretold, leases = Foretold(), [lease(i, 0.0) for i in range(4)]
    foretold.ask(Lasting().chance, leases, 0.0)
    assert foretold.calibration() == ()
    foretold.note_end(leases[0].key, 50.0, by_owner=True)
    foretold.note_end(leases[1].key, 50.0, by_owner=False)
    foretold.note_end(leases[2].key, 70.0, by_owner=True)
    foretold.ask(Lasting().chance, [replace(leases[3])], LEARN_EVERY_S)
    minute, five = foretold.calibration()
    assert (minute.horizon_s, minute.asked, minute.observed) == (60.0, 3, pytest.approx(2 / 3))
    assert (five.horizon_s, five.asked, five.observed) == (300.0, 3, pytest.approx(1 / 3))
    assert 0.9 < minute.predicted < 1.0


def test_of_very_many_leases_some_are_asked_about() -> None:
    foretold = Foretold()
    foretold.ask(Lasting().chance, [lease(i, 0.0) for i in range(5000)], 0.0)
    foretold.ask(Lasting().chance, [], 10_000.0)
    assert all(100 < of.asked <= 200 for of in foretold.calibration())
