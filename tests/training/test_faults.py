"""Faults with real processes: what each costs, and that the run still equals the undisturbed one, to the bit."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import time
from pathlib import Path

import pytest

from bench.uneven import slowed
from runtime.training.checkpoints import folder_of, newest_sound
from runtime.training.shares import split
from tests.training.stage import Stage, assert_equal_to_undisturbed
from tests.training.undisturbed import tiny_spec
from tests.training.web_hdfs import serving

pytestmark = pytest.mark.slow


async def done(stage: Stage) -> None:
    """The job ends well, and as if nothing had happened."""
    ended = await stage.said.until("ended")
    assert ended["outcome"] == "done", ended
    assert_equal_to_undisturbed(stage)


def steps_lost(stage: Stage) -> list[int]:
    return [lost["steps"] for lost in stage.said.all("work_lost")]


def limit_memory(stage: Stage, worker: str, more_bytes: int) -> None:
    """The worker's process may have so much more than it has now."""
    pid = stage.actors.processes[worker].pid
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))


MUCH = {"sequence_length": 128, "global_batch": 48, "steps": 2}
"""34 MB a sequence, most of it logits."""


async def test_a_step_that_does_not_fit_says_what_would_and_that_does(stage: Stage, tmp_path: Path) -> None:
    model = {**stage.spec.train.model.model_dump(), "vocab_size": 16_000}
    stage.spec = tiny_spec(model=model, **MUCH)
    await stage.warm("a", "b")
    for worker in "ab":
        limit_memory(stage, worker, 700 << 20)
    await stage.assign(["a", "b"], "start")
    ended = await stage.said.until("ended")
    assert ended["outcome"] == "failed"
    assert re.search(r"worker [ab] ran out of memory: the (logits|gradients|attention|feed-forward)", ended["message"])
    assert re.search(r"needs [\d.]+ [MG]B more than there is: a sequence of 128 tokens needs about", ended["message"])
    turns = re.search(r"accumulate (\d+) would fit", ended["message"])
    assert turns, ended["message"]
    again = Stage(tmp_path / "again", tiny_spec(model=model, **MUCH, accumulate=int(turns[1])))
    try:
        await again.warm("a", "b")
        for worker in "ab":
            limit_memory(again, worker, 700 << 20)
        await again.assign(["a", "b"], "start")
        assert (await again.said.until("ended"))["outcome"] == "done"
    finally:
        await again.controller.detach()
        again.actors.close()


async def test_experts_that_do_not_fit_are_named_with_the_width_at_which_they_would(stage: Stage) -> None:
    model = {**stage.spec.train.model.model_dump(), "hidden_size": 256, "expert_size": 1024, "experts": 16}
    stage.spec = tiny_spec(model=model, steps=2)
    await stage.warm("a", "b")
    for worker in "ab":
        limit_memory(stage, worker, 300 << 20)
    await stage.assign(["a", "b"], "start")
    ended = await stage.said.until("ended")
    assert ended["outcome"] == "failed"
    assert re.search(r"ran out of memory: the (state|gradient) of expert \d+ of layer \d", ended["message"])
    wider = re.search(r"width.min (\d+) would fit", ended["message"])
    assert wider, ended["message"]
    assert int(wider[1]) > 2


async def test_a_slow_worker_gets_less_of_the_batch_and_of_the_experts(stage: Stage) -> None:
    model = {**stage.spec.train.model.model_dump(), "hidden_size": 64, "expert_size": 128, "experts": 12}
    stage.spec = tiny_spec(model=model, steps=80, global_batch=24, checkpoint_every=200)
    await stage.warm("a", "b")
    with slowed(stage.actors.processes["b"].pid, stopped_s=0.03):
        await stage.become(["a", "b"], "start")
        moved = await stage.said.until("reached", lambda f: f["cause"] == "straggler")
        assert moved["bytes_moved"] > 0
        await stage.at_step(moved["at_step"] + 10)
        generation = (await stage.status("a")).generation
    await done(stage)
    (told,) = [line for log in stage.said.all("log") for line in log["lines"] if "of the others' speed" in line]
    assert float(told.split()[2]) < 0.75
    assert [f["detail"] for f in stage.said.all("worker") if f["state"] == "slow"] == [told]
    owned = {member.worker: len(member.slot.experts) for member in generation.members}
    assert owned["a"] > owned["b"]
    speeds = [member.speed for member in generation.members]
    assert split(24, speeds)[0] > split(24, speeds)[1]


def write_text(path: Path) -> Path:
    path.write_text("Nodes lie fallow until somebody asks for them. " * 300)
    return path


async def test_a_source_that_shrinks_is_not_noticed_and_the_jobs_own_tokens_are_mended(
    stage: Stage, tmp_path: Path
) -> None:
    source = write_text(tmp_path / "source.txt")
    stage.spec = tiny_spec(data=str(source))
    await stage.warm(*"abc")
    await stage.become(["a", "b"], "start")
    await stage.at_step(5)
    (tokens,) = (stage.folder / "data").glob("*.tokens")
    os.truncate(tokens, 100)
    at = max(stage.losses())
    await stage.at_step(at + 5)
    os.truncate(source, 100)
    await stage.become(["a", "b", "c"], "grow")
    await done(stage)
    told = [line for log in stage.said.all("log") for line in log["lines"] if "was made again" in line]
    assert len(told) == 1
    assert str(tokens) in told[0]
    assert steps_lost(stage) == []


async def test_data_that_is_lost_with_its_source_is_told(stage: Stage, tmp_path: Path) -> None:
    source = write_text(tmp_path / "source.txt")
    stage.spec = tiny_spec(data=str(source))
    await stage.warm(*"ab")
    await stage.become(["a", "b"], "start")
    await stage.at_step(22)
    (tokens,) = (stage.folder / "data").glob("*.tokens")
    os.truncate(source, 100)
    os.truncate(tokens, 100)
    ended = await stage.said.until("ended")
    assert ended["outcome"] == "failed"
    assert f"{tokens}: shrank to 100 of" in ended["message"]
    assert "source.txt has changed since: put back either of them" in ended["message"]
    assert newest_sound(str(stage.folder / "checkpoints"))[0] is not None


async def test_checkpoints_on_a_server_survive_the_loss_of_everyone(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with serving(tmp_path / "server") as url:
        stage.spec = tiny_spec(checkpoints=f"{url}job", checkpoint_every=6, keep_checkpoints=3)
        await stage.warm(*"abcd")
        await stage.become(["a", "b"], "start")
        while newest_sound(f"{url}job")[0] is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for worker in "ab":
            stage.actors.kill(worker)
        newest, _ = newest_sound(f"{url}job")
        resumed = await stage.become(["c", "d"], "loss")
        assert resumed["at_step"] >= newest.step
        await done(stage)
        assert len(os.listdir(tmp_path / "server" / "job")) == 3
    assert not (stage.folder / "checkpoints").exists()


@pytest.mark.parametrize("victim", ["a", "b"])
async def test_a_kill_while_a_checkpoint_is_written(stage: Stage, victim: str) -> None:
    checkpoints = str(stage.folder / "checkpoints")
    await stage.warm(*"abc")
    # the note beside the victim's file is a pipe that nobody reads: the first checkpoint will never be whole
    first = folder_of(checkpoints, 20, generation=1)
    os.makedirs(first)
    os.mkfifo(f"{first}/shard-{'abc'.index(victim):05d}.json")
    await stage.become(["a", "b", "c"], "start")
    await stage.at_step(24)  # training does not wait for the disk
    assert newest_sound(checkpoints)[0] is None
    stage.actors.kill(victim)
    await stage.said.until("reached", lambda f: f["cause"] == "loss")
    assert sum(steps_lost(stage)) <= stage.spec.train.snapshot_every
    await done(stage)
    # the checkpoint that was broken off was taken anew at once, those after it when they were due
    anew, later = (f"{checkpoints}/{name}" for name in sorted(os.listdir(checkpoints)))
    assert folder_of(checkpoints, 20, 2) < anew < folder_of(checkpoints, 30, 0)
    assert folder_of(checkpoints, 40, 2) <= later < folder_of(checkpoints, 41, 0)


async def test_two_kills_in_one_step_that_leave_a_copy_of_everything(stage: Stage) -> None:
    await stage.warm(*"abcd")
    await stage.become(["a", "b", "c", "d"], "start")
    await stage.at_step(23)  # beyond the first checkpoint, which is not to be needed
    stage.actors.kill("a")
    stage.actors.kill("c")
    await stage.become(["b", "d"], "loss")
    assert sum(steps_lost(stage)) <= stage.spec.train.snapshot_every
    await done(stage)


async def test_two_kills_that_take_both_copies_send_it_back_to_its_checkpoint_and_it_says_so(stage: Stage) -> None:
    await stage.warm(*"abcd")
    await stage.become(["a", "b", "c", "d"], "start")
    while newest_sound(str(stage.folder / "checkpoints"))[0] is None:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await stage.at_step(26)
    stage.actors.kill("b")
    stage.actors.kill("c")  # who kept the copies of b's experts
    resumed = await stage.become(["a", "d"], "loss")
    assert 20 <= resumed["at_step"] < 26
    (told,) = [line for log in stage.said.all("log") for line in log["lines"] if "copies" in line]
    assert "checkpoint of step 20" in told
    assert "b, c" in told
    await done(stage)


async def lose_one_of_four(stage: Stage) -> None:
    """Workers a, b, c and d train; then d is killed, and known to be lost."""
    await stage.warm(*"abcd")
    await stage.become(["a", "b", "c", "d"], "start")
    await stage.at_step(10)
    stage.actors.kill("d")
    await stage.said.until("worker", lambda f: (f["worker"], f["state"]) == ("d", "lost"))


async def test_a_reclaim_during_a_recovery(stage: Stage) -> None:
    await lose_one_of_four(stage)
    # a recovery needs what c keeps for d, and c's owner wants its node back
    deadline_s = time.time() + 10
    assignment = await stage.assign(["a", "b"], "reclaim", deadline_s=deadline_s)
    await stage.said.until("worker", lambda f: (f["worker"], f["state"]) == ("c", "left"))
    assert time.time() < deadline_s
    await stage.said.until("reached", lambda f: f["revision"] == assignment.revision)
    assert sum(steps_lost(stage)) <= stage.spec.train.snapshot_every
    await done(stage)


async def test_a_recovery_whose_helper_is_gone_before_it_could_help(stage: Stage) -> None:
    await lose_one_of_four(stage)
    stage.actors.kill("b")  # in mid-recovery; c still has b's experts, a has d's
    await stage.become(["a", "c"], "loss")
    assert sum(steps_lost(stage)) <= 2 * stage.spec.train.snapshot_every
    await done(stage)
