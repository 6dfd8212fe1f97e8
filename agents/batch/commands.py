"""Runs the commands of a batch system: with a time-out, in an environment without secrets, keeping their words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

from agents.batch import Refused, Unreachable

_PASSED_ON = frozenset(
    ("HOME", "KRB5CCNAME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER")
)


def clean_environment(base: Mapping[str, str], more: Mapping[str, str], own: Sequence[str] = ()) -> dict[str, str]:
    """What a command, and by `sbatch` a pilot, finds in its environment: a few plain variables of `base` and those
    that `own` names, then `more`. Tokens of a shell, and settings that would change a command's output, stay out."""
    return {name: value for name, value in base.items() if name in _PASSED_ON or name in own} | dict(more)


class Commands:
    """Runs commands one at a time: a batch system's controller is shared with everybody. `count` tells how many."""

    def __init__(self, environment: Mapping[str, str], unreachable: Sequence[str], time_out_s: float = 30.0) -> None:
        """`unreachable` are words by which the system says that it cannot be reached, in lower case."""
        self.count = 0
        self._environment, self._unreachable, self._time_out_s = dict(environment), tuple(unreachable), time_out_s
        self._one_at_a_time = asyncio.Lock()

    async def run(self, *command: str, stdin: str = "") -> str:
        """The command's output. Raises Unreachable, or Refused with what it said."""
        async with self._one_at_a_time:
            self.count += 1
            status, output, words = await self._ended(command, stdin)
        if status == 0:
            return output
        said = words.strip() or output.strip() or f"ended with status {status} and no words"
        if any(part in said.lower() for part in self._unreachable):
            raise Unreachable(f"{command[0]}: {said}")
        raise Refused(f"{command[0]}: {said}")

    async def _ended(self, command: Sequence[str], stdin: str) -> tuple[int, str, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        except OSError as error:
            raise Refused(f"{command[0]} cannot be run ({error.strerror}): is the batch system on PATH?") from error
        try:
            output, words = await asyncio.wait_for(process.communicate(stdin.encode()), self._time_out_s)
        except TimeoutError as error:
            raise Unreachable(f"{command[0]} gave no answer within {self._time_out_s:g} s") from error
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        assert process.returncode is not None
        return process.returncode, output.decode(errors="replace"), words.decode(errors="replace")
