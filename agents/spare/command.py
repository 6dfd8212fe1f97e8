"""A program of the owner's own that says what is spare, as JSON on its standard output."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass

from agents.spare import Judgement, Now

_MOST_BYTES = 65_536


class BadAnswer(ValueError):
    """The program failed, or said something that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Answer:
    """{"spare": true | false | ["cpu:0"], "expected_end_s": 1790000000, "grace_s": 30, "reason": "..."}"""

    spare: tuple[str, ...]
    reason: str
    expected_end_s: float | None  # Unix time
    grace_s: float | None


class Command:
    """Asks the program at every look. As long as it fails, nothing is spare, and the reason says why."""

    name = "command"

    def __init__(self, command: tuple[str, ...], devices: tuple[str, ...], time_out_s: float = 10.0) -> None:
        self.command, self.devices, self.time_out_s = command, devices, time_out_s

    async def judge(self, now: Now) -> Judgement:
        """What the program says now."""
        try:
            answer = read(await self._run(), self.devices)
        except BadAnswer as problem:
            return Judgement((), self.name, f"{self.command[0]}: {problem}")
        end = answer.expected_end_s
        ends_at = None if end is None else now.mono_s + end - now.unix_s
        if ends_at is not None and ends_at <= now.mono_s:
            return Judgement((), self.name, f"{self.command[0]}: its expected_end_s has passed")
        return Judgement(answer.spare, self.name, answer.reason, ends_at, answer.grace_s)

    async def _run(self) -> bytes:
        try:
            process = await asyncio.create_subprocess_exec(
                *self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise BadAnswer(f"cannot be run ({error.strerror}): check --command") from error
        try:
            output, _ = await asyncio.wait_for(process.communicate(), self.time_out_s)
        except TimeoutError as error:
            raise BadAnswer(f"gave no answer within {self.time_out_s:g} s") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if process.returncode:
            raise BadAnswer(f"ended with status {process.returncode}")
        return output


def read(output: bytes, devices: tuple[str, ...]) -> Answer:
    """Parse what the program printed. Raises BadAnswer with what is wrong in it."""
    if len(output) > _MOST_BYTES:
        raise BadAnswer(f"printed {len(output)} bytes, more than {_MOST_BYTES}")
    try:
        said = json.loads(output)
    except ValueError as error:
        raise BadAnswer(f"printed no JSON ({error})") from error
    if not isinstance(said, dict) or "spare" not in said:
        raise BadAnswer('must print an object with "spare": true, false or a list of device ids')
    unknown = sorted(set(said) - {"spare", "expected_end_s", "grace_s", "reason"})
    if unknown:
        raise BadAnswer(f"unknown field {unknown[0]!r}: use spare, expected_end_s, grace_s, reason")
    spare = _spare(said["spare"], devices)
    reason = str(said.get("reason") or ("spare" if spare else "not spare"))
    return Answer(spare, reason[:500], _number(said, "expected_end_s"), _number(said, "grace_s"))


def _spare(value: object, devices: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(value, bool):
        return devices if value else ()
    if isinstance(value, list) and all(v in devices for v in value):
        return tuple(d for d in devices if d in value)
    raise BadAnswer(f'"spare" must be true, false or a list of {", ".join(devices)}')


def _number(said: dict[str, object], name: str) -> float | None:
    value = said.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadAnswer(f'"{name}" must be a number of seconds, not {value!r}')
    return float(value)
