"""The Ray actor of a task job: runs one item at a time, and outlives the site process that asked for it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import replace
from pathlib import Path

from runtime.tasks import guard
from runtime.tasks.execution import execute
from runtime.tasks.work import MissingParameter, Outcome, Parameters, Work, fill_in

LINES_KEPT = 500
"""Lines that wait to be fetched; older ones go first. They are all in the item's output."""


class Runner:
    """One worker. All methods are asynchronous, so that it answers while an item runs."""

    def __init__(self, worker: str, work: Work) -> None:
        self._worker = worker
        self._work = work
        self._current: tuple[int, int] | None = None
        self._task: asyncio.Task[Outcome] | None = None
        self._lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._guard = subprocess.Popen(
            [sys.executable, "-E", "-S", guard.__file__], stdin=subprocess.PIPE, start_new_session=True
        )
        self._guard.wait()  # what watches is its child, which is nobody's

    async def run(self, item: int, attempt: int, parameters: Parameters) -> Outcome:
        """Run an item, or wait for the end of this very try if it is at it already (for an earlier site process)."""
        if self._current != (item, attempt) or self._task is None:
            self._current = (item, attempt)
            self._task = asyncio.create_task(self._run(item, parameters))
        return await asyncio.shield(self._task)

    async def at(self) -> tuple[int, int] | None:
        """The newest (item, attempt), whether it still runs or its outcome waits."""
        return self._current

    async def take_lines(self) -> list[str]:
        """What was written since the last call."""
        lines = list(self._lines)
        self._lines.clear()
        return lines

    async def _run(self, item: int, parameters: Parameters) -> Outcome:
        try:
            if self._work.command is not None:
                arguments = fill_in(self._work.command, parameters, self._work.names)
                return await self._execute(item, arguments, b"")
            return await self._call(item, parameters)
        except MissingParameter as error:
            return Outcome("failed", 0.0, error=str(error))
        except Exception as error:  # whatever it is, it is this item's and not the worker's
            return Outcome("failed", 0.0, error=repr(error))

    async def _call(self, item: int, parameters: Parameters) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "value.json"
            arguments = [sys.executable, "-m", "runtime.tasks.call", str(result)]
            call = {"function": self._work.function, "pickled": self._work.pickled, "parameters": parameters}
            outcome = await self._execute(item, arguments, json.dumps(call).encode())
            return replace(outcome, value_json=result.read_text()) if outcome.state == "done" else outcome

    async def _execute(self, item: int, arguments: list[str], standard_input: bytes) -> Outcome:
        return await execute(
            arguments,
            self._environment(item),
            self._folder(),
            standard_input,
            self._work.timeout_s,
            self._lines.append,
            self._tell_guard,
        )

    def _folder(self) -> str | None:
        """Where commands run: in the output folder, if this node sees it."""
        return self._work.output if os.path.isdir(self._work.output) else None

    def _environment(self, item: int) -> dict[str, str]:
        """This process's own, without the Ray cluster's secrets, and with what this process can import."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        names = {"FALLOW_JOB": self._work.job, "FALLOW_ITEM": str(item), "FALLOW_WORKER": self._worker}
        if self._work.command is None:
            names["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        return {**kept, **names}

    def _tell_guard(self, group: int) -> None:
        """Called from the new process too, hence no buffer and no lock."""
        assert self._guard.stdin is not None
        os.write(self._guard.stdin.fileno(), f"{group}\n".encode())
