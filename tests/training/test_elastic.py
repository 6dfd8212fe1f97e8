"""Laws 4 and 5 with real processes: whatever happens to its workers, a run equals the undisturbed one, to the bit."""

from __future__ import annotations

import re

import pytest

from runtime.training.controller import TrainController
from tests.training.stage import Stage, assert_equal_to_undisturbed

pytestmark = pytest.mark.slow


async def test_grow_shrink_and_kill_leave_the_loss_curve_as_it_was(stage: Stage) -> None:
    await stage.warm(*"abcde")
    await stage.become(["a", "b"], "start")
    await stage.at_step(6)
    grown = await stage.become(["a", "b", "c"], "grow", [1, 1, 2])
    await stage.at_step(grown["at_step"] + 3)
    shrunk = await stage.become(["b", "c"], "reclaim", [3, 1])
    await stage.at_step(shrunk["at_step"] + 3)
    await stage.become(["b", "c", "d", "e"], "grow")
    await stage.at_step(shrunk["at_step"] + 10)
    stage.actors.kill("c")
    lost = await stage.said.until("reached", lambda f: f["cause"] == "loss")
    await stage.become(["b", "d", "e"], "loss", [2, 1, 1])
    ended = await stage.said.until("ended")
    assert ended["outcome"] == "done"
    assert_equal_to_undisturbed(stage)
    # a graceful rescale loses nothing, an abrupt loss at most the steps since the last snapshot
    assert all(lost["steps"] <= stage.spec.train.snapshot_every for lost in stage.said.all("work_lost"))
    assert lost["stall_s"] > 0
    lines = [line for log in stage.said.all("log") for line in log["lines"]]
    assert any(
        re.search(r"^grow: nobody trained for \d\.\d+ s, \d\.\d+ s of it while \d+\.\d MB", line) for line in lines
    )
    assert stage.actors.alive() == set()


async def test_a_new_controller_a_parking_and_the_loss_of_everyone_leave_it_too(stage: Stage) -> None:
    await stage.warm(*"abcdef")
    await stage.become(["a", "b"], "start")
    await stage.at_step(5)
    # the site's process is replaced: the workers do not notice
    running = {name: process.pid for name, process in stage.actors.processes.items()}
    await stage.controller.detach()
    stage.controller = TrainController("job-1", stage.actors, stage.said, stage.folder)
    before = max(stage.losses())
    stage.revision = 0
    await stage.become(["a", "b"], "start")
    await stage.at_step(before + 4)
    unheard = range(before + 1, min(step for step in stage.losses() if step > before))
    assert {name: process.pid for name, process in stage.actors.processes.items()} == running
    # every node is wanted back: a checkpoint first, so no step is lost
    parked = await stage.become([], "reclaim")
    assert not {"a", "b"} & stage.actors.alive()
    resumed = await stage.become(["c", "d"], "start")
    assert resumed["at_step"] == parked["at_step"] >= before + 4
    assert stage.said.all("work_lost") == []
    # everyone dies at once: back to what is on disk
    await stage.at_step(resumed["at_step"] + 5)
    stage.actors.kill("c")
    stage.actors.kill("d")
    await stage.become(["e", "f"], "loss")
    assert len(stage.said.all("work_lost")) == 1
    assert (await stage.said.until("ended"))["outcome"] == "done"
    assert_equal_to_undisturbed(stage, unheard)


async def test_a_kill_in_mid_switch_a_hang_and_too_few_workers_leave_it_too(stage: Stage) -> None:
    await stage.warm(*"abcde")
    await stage.become(["a", "b", "c"], "start")
    await stage.at_step(4)
    # a joiner dies while it joins
    joined = await stage.assign(["a", "b", "c", "d"], "grow")
    await stage.ordered("d")
    stage.actors.kill("d")
    await stage.said.until("worker", lambda f: (f["worker"], f["state"]) == ("d", "lost"))
    await stage.said.until("reached", lambda f: f["revision"] == joined.revision)
    # a worker hangs
    await stage.at_step(max(stage.losses()) + 3)
    stage.actors.pause("c")
    hung = await stage.said.until("worker", lambda f: (f["worker"], f["state"]) == ("c", "lost"))
    assert "said nothing for" in hung["detail"]
    await stage.become(["a", "b"], "loss")
    # one more, and there are fewer than two: the survivor keeps what there is
    await stage.at_step(max(stage.losses()) + 3)
    stage.actors.kill("b")
    await stage.said.until("worker", lambda f: (f["worker"], f["state"]) == ("b", "lost"))
    await stage.become(["a", "e"], "loss")
    assert (await stage.said.until("ended"))["outcome"] == "done"
    assert all(lost["steps"] <= stage.spec.train.snapshot_every for lost in stage.said.all("work_lost"))
    assert_equal_to_undisturbed(stage)
