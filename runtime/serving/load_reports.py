"""Counts how many tokens each expert gets: for the scheduler, which spreads the copies of busy experts by it at the
next rescale, and for what follows the load until then."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from runtime.serving.fleet import Fleet
from runtime.serving.rollout import Up
from runtime.site.controller import Reports

LOADS_S = 30.0
"""How often: loads are weighed at the next rescale, and change slowly."""


async def report_loads(
    job: str, up: Mapping[str, Up], fleet: Fleet, reports: Reports, heed: Callable[[list[int], dict[str, int]], None]
) -> None:
    """Report what the engines among those that are up counted, where there were tokens; again and again. `heed` gets it
    too, with how many more experts each shard could hold."""
    while True:
        await asyncio.sleep(LOADS_S)
        engines = [name for name, worker in up.items() if worker.slot.role == "engine"]
        counted = await asyncio.gather(*map(fleet.take_tokens, engines))
        tokens = [sum(each) for each in zip(*filter(None, counted), strict=True)]
        if any(tokens):
            reports.expert_loads(job, tokens)
            shards = [name for name, worker in up.items() if worker.slot.role == "shard"]
            rooms = await asyncio.gather(*map(fleet.room, shards))
            heed(tokens, dict(zip(shards, rooms, strict=True)))
