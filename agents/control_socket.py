"""The owner's word: a unix socket in the agent's folder. One JSON object a line in, one out.

{"command": "reclaim", "grace_s": 10}    take the node back; it is not lent again until "lend"
{"command": "lend"}                      it may be lent again
{"command": "status"}                    how things are
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

Answer = Mapping[str, object]
_LONGEST_PATH = 107
_LONGEST_LINE = 65_536


class Owner(Protocol):
    """What the owner can do."""

    def reclaim(self, grace_s: float | None) -> Answer:
        """Take the node back; None: with the grace that the agent was started with."""

    def lend(self) -> Answer:
        """Let it be lent again."""

    def status(self) -> Answer:
        """How things are."""


class BadCommand(ValueError):
    """A line that is no command; the message says what would be."""


async def serve(path: Path, owner: Owner) -> asyncio.Server:
    """Listen, for this user only. Raises OSError: the path is too long, or the folder not writable."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise OSError(f"{path} is longer than the {_LONGEST_PATH} bytes that a socket's path may have: shorten --dir")

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ValueError):  # ValueError: a line beyond the limit
            while line := await reader.readline():
                writer.write(json.dumps(_answer(line, owner)).encode() + b"\n")
                await writer.drain()
        writer.close()

    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # of an agent that was killed
    before = os.umask(0o177)
    try:
        return await asyncio.start_unix_server(talk, path, limit=_LONGEST_LINE)
    finally:
        os.umask(before)


def _answer(line: bytes, owner: Owner) -> Answer:
    try:
        return {"ok": True, **obey(line, owner)}
    except BadCommand as problem:
        return {
            "ok": False,
            "error": str(problem),
            "remedy": 'Send {"command": "reclaim", "grace_s": 10}, {"command": "lend"} or {"command": "status"}.',
        }


def obey(line: bytes, owner: Owner) -> Answer:
    """Carry out one line. Raises BadCommand."""
    try:
        said = json.loads(line)
    except ValueError as error:
        raise BadCommand(f"not JSON: {error}") from error
    match said:
        case {"command": "reclaim", **rest} if set(rest) <= {"grace_s"}:
            return owner.reclaim(_grace(rest.get("grace_s")))
        case {"command": "lend", **rest} if not rest:
            return owner.lend()
        case {"command": "status", **rest} if not rest:
            return owner.status()
    raise BadCommand(f"not a command: {json.dumps(said)[:200]}")


def _grace(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadCommand(f"grace_s must be a number of seconds from 0 on, not {value!r}")
    return float(value)
