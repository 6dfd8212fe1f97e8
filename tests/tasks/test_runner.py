"""A runner's commands die with it, at whatever instant it dies."""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.tasks.runner import Runner
from runtime.tasks.work import Work
from tests.tasks.processes import until_dead


def runner(*command: str) -> Runner:
    return Runner("w0", Work("job-1", ".", command=command))


async def test_a_command_dies_with_a_runner_that_dies_before_it_knows_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = tmp_path / "began"
    dying = runner("sh", "-c", f"echo $$ > {began}; sleep 600")
    start = subprocess.Popen

    def die_once_it_began(*arguments: Any, **settings: Any) -> Any:
        process = start(*arguments, **settings)
        while not began.exists() or not began.read_text():
            time.sleep(0.01)
        dying._guard.stdin.close()  # as the kernel does for a process that is killed
        return process

    monkeypatch.setattr(subprocess, "Popen", die_once_it_began)
    outcome = asyncio.create_task(dying.run(0, 1, {}))
    await asyncio.wait((outcome,), timeout=30)
    pid = int(began.read_text())
    await until_dead(pid)
