"""Whether the processes that a job's commands started are gone."""

from __future__ import annotations

import asyncio
from pathlib import Path


async def until_dead(pid: int, limit_s: float = 30.0) -> None:
    async with asyncio.timeout(limit_s):
        while is_alive(pid):  # noqa: ASYNC110  another process kills it
            await asyncio.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
