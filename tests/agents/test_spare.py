"""Who says what is spare: hysteresis, calendars, batch jobs, programs, and how their words add up."""

from __future__ import annotations

import json
import sys
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.offer import Objection, due_reclaim, offer, pause_after_failures_s
from agents.probes import Device, ProbeFailed, Usage
from agents.spare import Judgement, Now, together
from agents.spare.command import BadAnswer, Command, read
from agents.spare.host import Host
from agents.spare.hysteresis import Thresholds, Verdict, judge
from agents.spare.pilot import Pilot
from agents.spare.schedule import InvalidSchedule, Schedule, make_schedule, minutes_left, parse_window

DEVICES = ("cpu:0", "cpu:1")
RULE = Thresholds(busy_above=0.25, spare_below=0.10, busy_after_s=4, spare_after_s=60)


def turns(loads: list[float], step_s: float, start: Verdict) -> list[float]:
    """Times at which the verdict turned."""
    verdict, found = start, []
    for index, load in enumerate(loads):
        fresh = judge(verdict, load, index * step_s, RULE)
        if fresh.spare != verdict.spare:
            found.append(index * step_s)
        verdict = fresh
    return found


class TestHysteresis:
    @given(st.lists(st.floats(0.10, 0.25), max_size=200), st.booleans())
    def test_a_load_that_hovers_between_the_thresholds_changes_nothing(self, loads: list[float], spare: bool) -> None:
        assert turns(loads, 2.0, Verdict(spare)) == []

    @given(st.lists(st.floats(0, 1), max_size=300), st.sampled_from([0.5, 2.0, 5.0]))
    def test_whatever_the_load_does_it_turns_to_spare_at_most_once_a_dwell(
        self, loads: list[float], step_s: float
    ) -> None:
        found = turns(loads, step_s, Verdict())
        to_spare = found[0::2]
        assert all(later - earlier >= RULE.spare_after_s for earlier, later in pairwise(to_spare))
        assert not found or found[0] >= RULE.spare_after_s

    @given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=100))
    def test_one_busy_look_starts_the_wait_anew(self, loads: list[float]) -> None:
        quiet = 29  # looks, two seconds apart: just short of the dwell time
        pattern = [load for look in loads for load in (*([0.0] * quiet), 0.5 + look / 2)]
        assert turns(pattern, 2.0, Verdict()) == []

    def test_an_owner_who_stays_gets_the_node_and_one_who_leaves_lends_it(self) -> None:
        assert turns([0.0] * 40, 2.0, Verdict()) == [60.0]
        assert turns([1.0] * 10, 2.0, Verdict(spare=True)) == [4.0]

    def test_thresholds_out_of_order_are_refused(self) -> None:
        with pytest.raises(ValueError, match="spare-below"):
            Thresholds(busy_above=0.1, spare_below=0.2)


class Scripted:
    """A probe that says what it is told to."""

    kind = "cpu"

    def __init__(self) -> None:
        self.load: float | None = 0.0

    def devices(self) -> tuple[Device, ...]:
        return ()

    def usage(self, ours: frozenset[int]) -> dict[str, Usage]:
        if self.load is None:
            raise ProbeFailed("the driver is gone")
        return {"cpu:0": Usage(self.load, f"is used to {self.load:.0%}"), "cpu:1": Usage(0.0, "is idle")}

    def energy_j(self, devices: tuple[str, ...]) -> float:
        return 0.0


async def test_host_judges_each_device_and_a_failing_probe_makes_nothing_spare() -> None:
    probe = Scripted()
    host = Host(probe, DEVICES, Thresholds(spare_after_s=0))
    assert (await host.judge(Now(0, 0))).spare == DEVICES
    probe.load = 1.0
    assert (await host.judge(Now(1, 1))).spare == DEVICES
    busy = await host.judge(Now(9, 9))
    assert busy.spare == ("cpu:1",)
    assert "cpu:0 is used to 100%" in busy.reason
    probe.load = None
    failed = await host.judge(Now(10, 10))
    assert failed.spare == ()
    assert "the driver is gone" in failed.reason


class TestSchedule:
    zone = ZoneInfo("Europe/Berlin")
    nights = (parse_window("mon-fri 19:00-07:00"), parse_window("sat,sun 00:00-24:00"))

    async def at(self, when: datetime, mono_s: float = 1000.0) -> Judgement:
        return await Schedule(DEVICES, self.nights, self.zone).judge(Now(mono_s, when.timestamp()))

    async def test_inside_a_night_the_end_is_the_morning(self) -> None:
        judged = await self.at(datetime(2026, 11, 24, 23, 0, tzinfo=self.zone))  # a Tuesday
        assert judged.spare == DEVICES
        assert judged.ends_at == pytest.approx(1000 + 8 * 3600)

    async def test_windows_that_touch_are_one(self) -> None:
        friday = await self.at(datetime(2026, 11, 27, 20, 0, tzinfo=self.zone))
        assert friday.ends_at == pytest.approx(1000 + (4 + 48) * 3600)  # Monday 00:00: no night begins on Sunday

    async def test_outside_nothing_is_spare(self) -> None:
        judged = await self.at(datetime(2026, 11, 24, 12, 0, tzinfo=self.zone))
        assert judged.spare == ()
        assert "Tue 12:00" in judged.reason

    async def test_the_end_knows_of_summer_time(self) -> None:
        night = (parse_window("sat 22:00-08:00"),)
        before = datetime(2027, 3, 27, 23, 0, tzinfo=self.zone)  # clocks go forward at 02:00
        judged = await Schedule(DEVICES, night, self.zone).judge(Now(0, before.timestamp()))
        assert judged.ends_at == pytest.approx(8 * 3600)

    async def test_windows_that_cover_the_week_never_end(self) -> None:
        always = Schedule(DEVICES, [parse_window("mon-sun 00:00-24:00")], self.zone)
        assert (await always.judge(Now(0, 0))).ends_at is None

    @given(st.integers(0, 6), st.floats(0, 24 * 60 - 1))
    def test_at_its_end_a_window_is_closed_and_just_before_it_is_open(self, day: int, minute: float) -> None:
        left = minutes_left(self.nights, day, minute)
        if left is None:
            return
        end = datetime(2026, 11, 23) + timedelta(days=day, minutes=minute + left)
        assert minutes_left(self.nights, end.weekday(), end.hour * 60 + end.minute + 0.5) is None
        earlier = end - timedelta(minutes=0.4)
        assert minutes_left(self.nights, earlier.weekday(), earlier.hour * 60 + earlier.minute) is not None

    @pytest.mark.parametrize("text", ["", "mon", "mon 7-9", "mon 25:00-26:00", "mon 10:75-11:00", "foo 10:00-11:00"])
    def test_a_window_that_cannot_be_read_is_refused_with_the_right_form(self, text: str) -> None:
        with pytest.raises(InvalidSchedule):
            parse_window(text)

    def test_files_are_checked(self, tmp_path: Path) -> None:
        good = tmp_path / "good.yaml"
        good.write_text('timezone: Europe/Berlin\nwindows: ["mon-fri 19:00-07:00"]\n')
        assert make_schedule(DEVICES, [], "", good).windows == (self.nights[0],)
        bad = tmp_path / "bad.yaml"
        for text in ("windows: [", "hours: []", "windows: 7", "timezone: Mars/Base\nwindows: ['mon 1:00-2:00']"):
            bad.write_text(text)
            with pytest.raises(InvalidSchedule):
                make_schedule(DEVICES, [], "", bad)
        with pytest.raises(InvalidSchedule, match="--window"):
            make_schedule(DEVICES, [], "", None)


class TestPilot:
    async def test_the_end_of_the_job_does_not_move_when_the_wall_clock_jumps(self) -> None:
        job = {"SLURM_JOB_ID": "42", "SLURM_JOB_END_TIME": "1700003605"}
        pilot = Pilot(DEVICES, job, Now(50.0, 1_700_000_000.0))
        for jump_s in (0.0, -86_400.0, 86_400.0):
            judged = await pilot.judge(Now(60.0, 1_700_000_010.0 + jump_s))
            assert judged.spare == DEVICES
            assert judged.ends_at == 50.0 + 3600
        assert (await pilot.judge(Now(3651.0, 0.0))).spare == ()

    @pytest.mark.parametrize(
        ("environment", "word"),
        [({}, "not inside a batch job"), ({"SLURM_JOB_ID": "1", "SLURM_JOB_END_TIME": "soon"}, "not a Unix time")],
    )
    async def test_without_a_job_nothing_is_spare(self, environment: dict[str, str], word: str) -> None:
        judged = await Pilot(DEVICES, environment, Now(0, 0)).judge(Now(1, 1))
        assert judged.spare == ()
        assert word in judged.reason


class TestCommand:
    def test_answers_are_read(self) -> None:
        assert read(b'{"spare": true}', DEVICES).spare == DEVICES
        assert read(b'{"spare": ["cpu:1"], "reason": "half"}', DEVICES).spare == ("cpu:1",)
        full = read(b'{"spare": false, "expected_end_s": 5, "grace_s": 2.5}', DEVICES)
        assert (full.spare, full.expected_end_s, full.grace_s) == ((), 5.0, 2.5)

    @pytest.mark.parametrize(
        "output",
        [
            *("", "yes", "[]", "{}", '{"spare": 1}', '{"spare": ["gpu"]}', '{"spare": true, "grace_s": "long"}'),
            *('{"spare": true, "grace_s": -1}', '{"spare": true, "grace_s": NaN}', '{"spare": true, "until": 3}'),
        ],
    )
    def test_bad_answers_say_what_is_wrong(self, output: str) -> None:
        with pytest.raises(BadAnswer):
            read(output.encode(), DEVICES)

    async def judged(self, code: str, time_out_s: float = 20.0) -> Judgement:
        return await Command((sys.executable, "-S", "-c", code), DEVICES, time_out_s).judge(Now(100.0, 1000.0))

    async def test_the_programs_word_holds(self) -> None:
        said = {"spare": True, "expected_end_s": 1060, "grace_s": 7, "reason": "night"}
        judged = await self.judged(f"print({json.dumps(said)!r})")
        assert judged == Judgement(DEVICES, "command", "night", 160.0, 7.0)

    @pytest.mark.parametrize(
        ("code", "word"),
        [
            ("raise SystemExit(3)", "status 3"),
            ("print('?')", "no JSON"),
            ('print(\'{"spare": true, "expected_end_s": 999}\')', "passed"),
            ("import time; time.sleep(60)", "no answer within"),
        ],
    )
    async def test_as_long_as_it_fails_nothing_is_spare(self, code: str, word: str) -> None:
        judged = await self.judged(code, 0.5 if "sleep" in code else 20.0)
        assert judged.spare == ()
        assert word in judged.reason

    async def test_a_missing_program_is_named(self) -> None:
        judged = await Command(("/no/such/program",), DEVICES).judge(Now(0, 0))
        assert "/no/such/program: cannot be run" in judged.reason


class TestTogether:
    def test_all_must_agree_and_the_one_who_does_not_is_quoted(self) -> None:
        night = Judgement(DEVICES, "schedule", "night", ends_at=90.0, grace_s=60.0)
        host = Judgement(("cpu:1",), "host", "cpu:0 is used", ends_at=None, grace_s=None)
        assert together([night, host], DEVICES) == Judgement(("cpu:1",), "host", "cpu:0 is used", 90.0, 60.0)
        assert together([night], DEVICES) == night


class TestOffer:
    free = Judgement(DEVICES, "schedule", "night", ends_at=100.0)

    def test_an_objection_holds_everything_back(self) -> None:
        held = offer(self.free, Objection("owner", "mine"), lent=True, now_s=0.0, grace_s=10.0)
        assert (held.spare, held.source, held.reason, held.grace_s) == ((), "owner", "mine", 10.0)

    def test_too_short_a_time_is_not_lent_but_does_not_end_a_lease(self) -> None:
        assert offer(self.free, None, lent=False, now_s=65.0, grace_s=10.0).spare == ()
        assert offer(self.free, None, lent=True, now_s=65.0, grace_s=10.0).spare == DEVICES

    def test_a_reclaim_is_due_when_the_owner_returns_or_the_end_is_a_notice_away(self) -> None:
        offered = offer(self.free, None, lent=True, now_s=0.0, grace_s=10.0)
        assert due_reclaim(offered, DEVICES, 80.0) is None
        assert due_reclaim(offered, DEVICES, 92.0) == (8.0, "schedule: the known end is near")
        assert due_reclaim(offered, (), 92.0) is None
        busy = Judgement(("cpu:1",), "host", "cpu:0 is used", grace_s=5.0)
        assert due_reclaim(busy, ("cpu:1",), 0.0) is None
        assert due_reclaim(busy, DEVICES, 0.0) == (5.0, "host: cpu:0 is used")

    @given(st.integers(0, 10_000))
    def test_pauses_after_failures_grow_and_end(self, failures: int) -> None:
        assert pause_after_failures_s(failures) <= pause_after_failures_s(failures + 1) <= 300
