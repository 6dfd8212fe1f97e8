"""One try of one item: a process group that is started, listened to, limited in time, and gone when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable

from runtime.tasks.work import Outcome

KEPT_BYTES = 1_000_000
"""Of each stream, the end is kept; a command that writes more should write to a file of its own."""

TERM_S = 5.0
"""From the polite signal after a time-out to SIGKILL."""

_CUT = "[the beginning, {} bytes, was not kept]\n"


class Tail:
    """The end of a stream, and its lines as they come."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._kept = bytearray()
        self._dropped = 0
        self._line = bytearray()
        self._on_line = on_line

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Read until the stream's end."""
        while data := await stream.read(65_536):
            self._add(data)
        if self._line:
            self._on_line(self._line.decode(errors="replace"))

    def _add(self, data: bytes) -> None:
        self._kept += data
        if len(self._kept) > KEPT_BYTES:
            self._dropped += len(self._kept) - KEPT_BYTES
            del self._kept[:-KEPT_BYTES]
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))
        self._line = bytearray(rest[-KEPT_BYTES:])

    def text(self) -> str:
        """What was kept."""
        kept = self._kept.decode(errors="replace")
        return _CUT.format(self._dropped) + kept if self._dropped else kept


async def execute(
    arguments: list[str],
    environment: dict[str, str],
    folder: str | None,
    standard_input: bytes,
    timeout_s: float | None,
    on_line: Callable[[str], None],
    tell: Callable[[int], None],
) -> Outcome:
    """Run the arguments to their end: `tell(group)` before the command's first instruction, `tell(0)` after its last.

    Nothing that it started in its process group is left, however it ends. The new process itself calls `tell(group)`:
    this one may be killed before it has learnt the number.
    """
    began_s = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            cwd=folder,
            start_new_session=True,
            preexec_fn=lambda: tell(os.getpid()),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        tell(0)
        return Outcome("failed", time.monotonic() - began_s, error=f"{arguments[0]} cannot be started: {error}")
    out, err = Tail(on_line), Tail(on_line)
    try:
        late = await _run(process, standard_input, timeout_s, out, err)
    finally:
        _kill_group(process.pid)
        tell(0)
    fault = f"ran longer than timeout_s ({timeout_s:g} s)" if late else _fault(process.returncode, err.text())
    state = "failed" if fault else "done"
    seconds = time.monotonic() - began_s
    return Outcome(state, seconds, process.returncode, fault, stdout=out.text(), stderr=err.text())


async def _run(
    process: asyncio.subprocess.Process, standard_input: bytes, timeout_s: float | None, out: Tail, err: Tail
) -> bool:
    """Whether it had to be stopped for its time."""
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    readers = asyncio.gather(out.read(process.stdout), err.read(process.stderr), _feed(process.stdin, standard_input))
    late = not await _ends(process, timeout_s)
    if late:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        await _ends(process, TERM_S)
    _kill_group(process.pid)  # children that it left would hold its output open
    await process.wait()
    await readers
    return late


async def _ends(process: asyncio.subprocess.Process, limit_s: float | None) -> bool:
    try:
        await asyncio.wait_for(process.wait(), limit_s)
    except TimeoutError:
        return False
    return True


async def _feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    stream.close()


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _fault(status: int | None, stderr: str) -> str:
    if status == 0:
        return ""
    how = f"ended by {signal.Signals(-status).name}" if status is not None and status < 0 else f"exit status {status}"
    last = stderr.strip()[-2000:]
    return f"{how}: {last}" if last else how
