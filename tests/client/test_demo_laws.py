"""The demo's own judgement: a law that was broken must be seen, and only that one."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fallow import wire
from fallow.demo.completion import Completion
from fallow.demo.summary import HandBack, Measured, as_json, checks
from fallow.demo.witness import booked_twice, gangs_broken
from fallow.results import DeviceSeconds, Rescale, Usage, UsageRow, Worker
from tests.client.fake_scheduler import job

BOOKS = DeviceSeconds(100.0, 80.0, 5.0, 10.0, 5.0)
USAGE = Usage((UsageRow("k", BOOKS, 0.0),), BOOKS)
TEXT = Completion("once upon a time", 4, 1.0, 0.1)


def rescale(cause: str, steps_lost: int) -> Rescale:
    return Rescale(1.0, cause, 3, 0.2, 0, 10, steps_lost)


@pytest.fixture
def good() -> Measured:
    trained = replace(wire.job(job("done", step=60, total=60, loss=2.0)), steps_lost=5)
    trained = replace(trained, rescales=(rescale("start", 0), rescale("reclaim", 0), rescale("loss", 5)))
    saw: Any = SimpleNamespace(
        booked_twice=set(), gangs_broken=set(), looks=9, agent_rss_bytes=5e7, agent_cpu_fraction=0.004
    )
    return Measured(
        train=trained,
        train_steps_wanted=60,
        loss_first=7.0,
        snapshot_every=8,
        hand_backs=(HandBack("node-2", 2, 10.0, 1.2, 1.5, 0),),
        resubmit_existed=True,
        undisturbed=TEXT,
        disturbed=TEXT,
        refusal_has_reason=True,
        unplaced_has_reason=True,
        usage={"job": USAGE, "node": USAGE, "site": USAGE},
        witness=saw,
    )


def broken_laws(measured: Measured) -> set[int]:
    return {check.law for check in checks(measured) if not check.held}


def test_a_good_run_breaks_no_law_and_has_exactly_the_keys_asked_for(good: Measured) -> None:
    assert broken_laws(good) == set()
    summary = as_json(good, [])
    assert set(summary) == {"train", "reclaims", "serve", "device_seconds", "agent", "laws_broken"}
    assert set(summary["train"]) == {
        "steps",
        "loss_first",
        "loss_last",
        "rescales",
        "steps_lost_graceful",
        "steps_lost_abrupt",
    }
    assert (summary["train"]["steps_lost_graceful"], summary["train"]["steps_lost_abrupt"]) == (0, 5)
    assert set(summary["serve"]) == {"tokens", "tokens_lost", "texts_equal", "longest_stall_s"}
    assert summary["laws_broken"] == []


def test_each_fault_breaks_its_own_law(good: Measured) -> None:
    late = HandBack("node-2", 2, 10.0, 10.4, 10.4, 0)
    stray = HandBack("node-2", 2, 10.0, 1.0, 1.0, 1)
    wrong = Usage((UsageRow("k", BOOKS, 0.0),), replace(BOOKS, useful=79.0))
    graceful = replace(good.train, rescales=(rescale("reclaim", 1),), steps_lost=1)
    assert broken_laws(replace(good, hand_backs=(late,))) == {1}
    assert broken_laws(replace(good, hand_backs=(stray,))) == {1}
    assert broken_laws(replace(good, resubmit_existed=False)) == {4}
    assert broken_laws(replace(good, train=graceful)) == {4}
    assert broken_laws(replace(good, train=replace(good.train, steps_lost=9))) == {4}
    assert broken_laws(replace(good, train=replace(good.train, step=59))) == {5}
    assert broken_laws(replace(good, loss_first=1.0)) == {5}
    assert broken_laws(replace(good, disturbed=replace(TEXT, text="once", tokens=1))) == {4, 5}
    assert broken_laws(replace(good, unplaced_has_reason=False)) == {7}
    assert broken_laws(replace(good, usage={"job": wrong})) == {8}


def test_the_witness_knows_a_double_booking_and_a_broken_gang() -> None:
    worker = Worker("w1", "trainer", "node-1", 1, ("cpu:0",))
    first = replace(wire.job(job(width=1)), workers=(worker,))
    second = replace(first, id="job-2", workers=(replace(worker, id="w2"),))
    assert booked_twice([first]) == []
    assert booked_twice([first, second]) == ["node-1/1 cpu:0"]
    assert gangs_broken([first]) == ["poem at width 1, minimum 2"]
