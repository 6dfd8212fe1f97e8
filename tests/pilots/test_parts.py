"""Lengths, pacing, the end of a pilot, what Slurm's commands print, and how much work there is."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.batch import Limits, Machine, PilotJob, PilotState, Refused, short_name, slurm_words
from agents.batch.commands import clean_environment
from agents.pilots import demand, lengths
from agents.pilots.early_ends import TOO_MANY, EarlyEnds
from agents.pilots.inside import note_end
from agents.pilots.lengths import HPC_WHISK_S, IdleWatch
from agents.pilots.pacing import Pace
from agents.spare import Now
from agents.spare.pilot import Pilot
from protocol import client_pb2 as pb

idle_times = st.lists(st.floats(1, 20_000), min_size=lengths.ENOUGH, max_size=60)


@given(st.floats(0, 50_000), st.lists(st.sampled_from(HPC_WHISK_S), min_size=1, unique=True).map(sorted))
def test_no_more_is_used_than_there_is(idle_s: float, bag: list[float]) -> None:
    assert 0 <= lengths.useful_s(idle_s, bag, 10.0) <= idle_s


@given(idle_times, st.integers(1, 9))
def test_learned_lengths_are_the_bag_s_own_and_better_than_any_single_one(seen: list[float], count: int) -> None:
    learned = lengths.learn(seen, count, 10.0)
    assert set(learned) <= set(HPC_WHISK_S)
    assert 1 <= len(learned) <= count
    assert list(learned) == sorted(learned)
    best = max(sum(lengths.useful_s(s, (one,), 10.0) for s in seen) for one in HPC_WHISK_S)
    assert sum(lengths.useful_s(s, learned, 10.0) for s in seen) >= best - 1e-6


def test_nothing_is_learned_from_little() -> None:
    assert lengths.learn([100.0], 3, 10.0) == HPC_WHISK_S


def test_idle_watch_takes_intervals_from_looks() -> None:
    watch = IdleWatch()
    for at_s, idle in ((0.0, "ab"), (10.0, "b"), (25.0, "a"), (30.0, "")):
        watch.look(at_s, idle)
    assert watch.intervals_s == (10.0, 25.0, 5.0)


def test_at_most_four_commands_a_minute_while_nothing_changes() -> None:
    pace, looks_s, now_s = Pace(5.0, 40.0, 120.0).changed(0.0), [], 0.0
    while now_s < 3600:
        if now_s >= pace.next_s:
            looks_s.append(now_s)
            pace = pace.quiet(now_s)
        now_s += 0.5
    settled = [s for s in looks_s if s > 120]
    assert all(2 * sum(begin <= s < begin + 60 for s in settled) <= 4 for begin in settled)


def test_a_silent_system_is_left_alone_and_a_sign_of_change_is_followed() -> None:
    pace, now_s, pauses = Pace(5.0, 40.0, 120.0), 0.0, []
    for _ in range(8):
        pace = pace.silent(now_s)
        pauses.append(pace.pause_s)
        now_s = pace.next_s
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0, 120.0]
    quiet = Pace(5.0, 40.0, 120.0, pause_s=40.0, next_s=140.0)
    assert quiet.hurried(101.0).next_s == 105.0
    assert quiet.hurried(120.0).next_s == 120.0


def machine(*pilots: tuple[str, str]) -> Machine:
    """Of running pilots, each its id and its node; without a node it waits."""
    states = {True: PilotState.RUNNING, False: PilotState.PENDING}
    return Machine(8, pilots=tuple(PilotJob(name, states[bool(node)], 120.0, node) for name, node in pilots))


def test_pilots_that_end_before_their_agents_come_are_counted_until_one_comes() -> None:
    early = EarlyEnds()
    for number in range(TOO_MANY):
        assert not early.too_many
        early.look(machine((f"{number}", "")), ())
        assert early.on_trial()
    early.look(machine(("9", "n1")), ())
    assert early.too_many
    early.look(machine(("9", "n1")), ("n1",))
    assert (early.in_a_row, early.on_trial()) == (0, False)


def test_pilots_that_no_look_ever_shows_have_ended_too() -> None:
    early = EarlyEnds()
    early.submitted(2)
    early.look(machine(("1", "")), ())
    early.submitted(2)
    early.look(machine(), ())
    assert early.in_a_row == 4


def test_pilots_whose_agents_came_end_as_they_like_and_so_do_those_that_are_withdrawn() -> None:
    early = EarlyEnds()
    early.look(machine(("1", "n1"), ("2", "n2"), ("3", "")), ("n1",))
    early.look(machine(("1", "n1"), ("2", "n2"), ("3", "")), ("n2",))
    early.withdrawn(["3"])
    early.look(machine(), ())
    assert early.in_a_row == 0


def test_nodes_are_known_by_their_short_names() -> None:
    early = EarlyEnds()
    early.look(machine(("1", "")), ())
    early.look(machine(("1", "ann@n1.cluster.example")), ("n1",))
    assert not early.on_trial()


@pytest.mark.parametrize(
    ("node", "name"),
    [
        ("n1", "n1"),
        ("n1.cluster.example", "n1"),
        ("ann@n1", "n1"),
        ("10.0.0.5", "10-0-0-5"),
        ("ann@10.0.0.5", "10-0-0-5"),
        ("fd00::5", "fd00--5"),
        ("::1", "1"),
    ],
)
def test_a_node_s_short_name(node: str, name: str) -> None:
    assert short_name(node) == name


def test_one_bad_node_is_found_beside_good_ones() -> None:
    early = EarlyEnds()
    early.look(machine(("1", "n1")), ("n1",))
    for number in range(TOO_MANY):
        early.look(machine(("1", "n1"), (f"bad-{number}", "n2")), ("n1",))
    early.look(machine(("1", "n1")), ("n1",))
    assert early.too_many


@given(st.floats(-1e6, 1e6), st.floats(0, 60), st.integers(60, 5400))
def test_no_clock_moves_the_end_of_a_pilot_beyond_its_length(skew_s: float, late_s: float, length_s: int) -> None:
    """The controller's clock is ahead of the node's by `skew_s`; the job began `late_s` before its first command."""
    now_s = 1_790_000_000.0
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(int(now_s + skew_s - late_s + length_s))}
    note_end(environment, length_s, now_s)
    pilot = Pilot(("cpu:0",), environment, Now(0.0, now_s))
    assert pilot.ends_at is not None
    assert pilot.ends_at <= length_s - 5.0
    if abs(skew_s) < 60 and late_s > skew_s + 1:
        assert pilot.ends_at <= length_s + skew_s - late_s - 5.0 + 0.01
    assert pilot.ends_at >= length_s - 5.0 - 121.0, "a wrong clock costs the harvest no more than a slow start"


def test_older_versions_do_not_tell_the_end() -> None:
    environment = {"SLURM_JOB_ID": "7"}
    note_end(environment, 120.0, time.time())
    assert float(environment["FALLOW_END_TIME"]) == pytest.approx(time.time() + 120, abs=2)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2:00", 120.0),
        ("1:30:00", 5400.0),
        ("1-00:00:00", 86_400.0),
        ("2-12", 216_000.0),
        ("UNLIMITED", math.inf),
        ("INVALID", math.inf),
        ("30", 1800.0),
    ],
)
def test_time_limits(text: str, seconds: float) -> None:
    assert slurm_words.duration_s(text) == seconds


def test_what_squeue_and_sinfo_show() -> None:
    rows = slurm_words.queue(
        "7_1|RUNNING|ann|8:00|1790000000|n2|fallow-mini\n"
        "7_2|PENDING|ann|8:00|N/A||fallow-mini\n"
        "6|COMPLETING|ann|4:00|1790000000|n3|fallow-mini\n"
        "9|PENDING|bob|1:00:00|1790000300||odd|name | of a job\n"
        "8|PENDING|bob|1:00:00|N/A||fallow-mini\n"
    )
    assert rows[3].name == "odd|name | of a job"
    states = slurm_words.node_states(
        "n1|idle\nn2|allocated\nn3|completing\nn4|draining*\nn5|down*\nn6|idle*\nn7|mixed\n"
    )
    seen = slurm_words.machine(rows, states, "ann", "fallow-mini", 1_790_000_000.0)
    assert seen == Machine(
        nodes=4,
        idle=("n1",),
        leaving=("n4",),
        pilots=(
            PilotJob("7_1", PilotState.RUNNING, 480.0, "n2"),
            PilotJob("7_2", PilotState.PENDING, 480.0),
            PilotJob("6", PilotState.ENDING, 240.0, "n3"),
        ),
        waiting=2,
        window_s=300.0,
    )


def test_what_cannot_be_read_is_said() -> None:
    with pytest.raises(Refused, match="squeue printed 'JOBID"):
        slurm_words.queue("JOBID PARTITION NAME\n")


def test_limits_of_a_partition() -> None:
    config = slurm_words.settings(
        "KillWait                = 30 sec\nPreemptType             = preempt/partition_prio\n"
    )
    grace = slurm_words.settings("PartitionName=spare GraceTime=120 MaxTime=1-00:00:00 PreemptMode=REQUEUE State=UP")
    assert slurm_words.limits(config, grace) == Limits(30.0, True, 86_400.0)
    none = slurm_words.settings("PartitionName=batch GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=UP")
    assert slurm_words.limits(config, none) == Limits(30.0, False)
    assert slurm_words.limits({**config, "killwait": "180 sec"}, grace).notice_s == 120.0
    with pytest.raises(Refused, match="spare is DOWN"):
        slurm_words.limits(config, {**grace, "state": "DOWN"})


def test_no_variable_of_the_shell_goes_into_a_job() -> None:
    base = {"PATH": "/bin", "FALLOW_TOKEN": "x", "SQUEUE_FORMAT": "%i", "SBATCH_EXPORT": "ALL", "SLURM_CONF": "/c"}
    assert clean_environment(base, {"A": "1"}, ("SLURM_CONF",)) == {"PATH": "/bin", "SLURM_CONF": "/c", "A": "1"}


def test_work_is_what_live_jobs_could_use_less_what_they_have_elsewhere() -> None:
    jobs = [
        pb.Job(state="running", useful_width=6, max_width=8),
        pb.Job(state="queued", useful_width=5),
        pb.Job(state="parked", useful_width=0, max_width=7),  # a served model that sleeps
        pb.Job(state="ending", useful_width=9),
    ]
    device = pb.Node().devices.add()
    pilot = {"site": "mini", "source": "pilot", "devices": [device, device]}
    nodes = [
        pb.Node(id="mini.n1", state="lent", lease_state="ready", workers=[{"worker": "w"}], **pilot),
        pb.Node(id="mini.n2", state="lost", **pilot),
        pb.Node(id="other", site="else", source="host", state="lent", lease_state="ready", devices=[device] * 3),
    ]
    found = demand.work(jobs, nodes, "mini", 1)
    assert (found.nodes, found.at_work, found.present) == (4, frozenset({"n1"}), frozenset({"n1"}))
    assert demand.work([], nodes, "mini", 1).nodes == 0
