"""A job is done when the worker that tells of its steps has told of the last one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.site.controller import Assignment
from runtime.training.controller import TrainController
from runtime.training.generation import form
from tests.training.local_actors import LocalActors
from tests.training.recorder import Recorder
from tests.training.undisturbed import slots, tiny_spec

FINISHED = {"kind": "finished", "step": 60, "output": "/out"}


@pytest.fixture
def controller(tmp_path: Path) -> TrainController:
    """Of a job whose two workers train."""

    async def nothing(*_: object) -> None:
        pass

    made, spec = TrainController("job-1", LocalActors(), Recorder(), tmp_path), tiny_spec()
    workers = slots(spec, ["a", "b"])
    made._generation, made._target = form(1, workers), Assignment("job-1", 1, workers, "start", spec=spec)
    handle = SimpleNamespace(cancel=SimpleNamespace(remote=nothing))
    links: dict[str, Any] = {
        s.worker: SimpleNamespace(slot=s, phase="training", ready_s=0.0, dismiss=nothing, handle=handle)
        for s in workers
    }
    made._links = links
    return made


def outcomes(controller: TrainController) -> list[str]:
    return [facts["outcome"] for facts in controller._reports.all("ended")]


async def test_the_first_in_rank_ends_it(controller: TrainController) -> None:
    await controller._take_event("b", FINISHED)
    assert outcomes(controller) == []  # steps that a has told of may still be on their way
    await controller._take_event("a", FINISHED)
    assert outcomes(controller) == ["done"]


async def test_anyone_ends_it_if_the_first_is_lost(controller: TrainController) -> None:
    await controller._take_event("b", FINISHED)
    await controller._take_event("a", {"kind": "lost", "reason": "its process ended"})
    assert outcomes(controller) == ["done"]
