"""Making switches and delivering them: where state comes from, who sends what, and the rendezvous."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.site.controller import ExpertId
from runtime.training.checkpoints import newest_sound
from runtime.training.decisions import IDLE, Go
from runtime.training.flight import Flight
from runtime.training.generation import (
    DENSE,
    Generation,
    Item,
    Source,
    Switch,
    newest_complete,
    participants,
    plan_moves,
)
from runtime.training.link import Link

CALL_S = 3.0
"""Longest wait for a worker's answer to an order: one that hangs must not hold up the others."""

Links = Mapping[str, Link]


class CheckpointsUnreachable(Exception):
    """Where they lie cannot be read, so nobody knows what to go on from; the message says where."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a generation that nobody hands over to can start from; `holders` is empty if that is not in memory."""

    source: Source
    holders: Mapping[Item, tuple[str, ...]]
    problems: tuple[str, ...] = ()


async def graceful_switch(go: Go, generation: Generation, present: Generation, links: Links, cause: str) -> Switch:
    """From a generation that trains: live state, from its owners, with all of its members present."""
    holders: dict[Item, tuple[str, ...]] = {DENSE: present.workers}
    holders |= {key: (m.worker,) for m in present.members for key in m.slot.experts}
    moves = plan_moves(generation, holders)
    return Switch(
        generation=generation,
        participants=participants(generation, moves, present.workers),
        store=await _open_store(generation, links),
        source=Source("live", generation=present.number),
        moves=moves,
        then=go.then,
        cause=cause,
    )


async def find_origin(links: Links, experts: Iterable[ExpertId], checkpoints: str) -> Origin:
    """The newest state that idle workers hold in memory, else on disk, else the beginning."""
    idle = [link for link in links.values() if link.phase in IDLE]
    async with asyncio.timeout(CALL_S):
        statuses = await asyncio.gather(*(link.status() for link in idle))
    holdings = {link.slot.worker: status.holdings for link, status in zip(idle, statuses, strict=True)}
    in_memory = newest_complete(holdings, (DENSE, *experts))
    if in_memory is not None:
        return Origin(*in_memory)
    try:
        on_disk, problems = await asyncio.to_thread(newest_sound, checkpoints)
    except Exception as error:  # every kind of storage has its own
        raise CheckpointsUnreachable(f"{checkpoints}: cannot be read ({error}): training waits for it") from error
    if on_disk is None:
        return Origin(Source("fresh"), {}, tuple(problems))
    return Origin(Source("checkpoint", step=on_disk.step, path=on_disk.path), {}, tuple(problems))


def told_of_both_copies(lost: Iterable[str], source: Source) -> str:
    """What a user reads when a loss took everyone who held some part of the state."""
    back = (
        f"the checkpoint of step {source.step}" if source.kind == "checkpoint" else "the beginning: no checkpoint yet"
    )
    return f"both copies of a part of the state were lost with {', '.join(lost)}: training goes back to {back}"


async def recovery_switch(go: Go, generation: Generation, origin: Origin, links: Links, cause: str) -> Switch:
    """A start, a return from parking, or the way back after a loss."""
    moves = plan_moves(generation, origin.holders) if origin.holders else ()
    return Switch(
        generation=generation,
        participants=participants(generation, moves, ()),
        store=await _open_store(generation, links),
        source=origin.source,
        moves=moves,
        then=go.then,
        cause=cause,
    )


async def send(switch: Switch, links: Links) -> None:
    """Order it to every participant. One that cannot be reached is lost, as its link will say."""
    calls = [_call(links[worker].handle.order, switch) for worker in switch.participants]
    await asyncio.gather(*calls, return_exceptions=True)


async def resend(flight: Flight, links: Links) -> bool:
    """An earlier controller may not have reached everyone. The order is idempotent; who is through says so.

    False if it is too early for that: workers are still to be found.
    """
    known = [links[w] for w in flight.switch.participants if w in links]
    if any(link.phase == "starting" for link in known):
        return False
    flight.is_sent = True
    for worker in set(flight.switch.participants) - links.keys():
        flight.hear(worker, {"kind": "lost"})
    for link in known:
        try:
            await link.handle.order.remote(flight.switch)
            flight.adopt(link.slot.worker, await link.status())
        except Exception:  # its link says what became of it
            flight.hear(link.slot.worker, {"kind": "lost"})
    return True


async def call_off(number: int, workers: Iterable[str], links: Links) -> None:
    """Have them leave that generation, or the switch to it, if they have not noticed by themselves."""
    reachable = [links[w] for w in workers if w in links and links[w].phase not in ("lost", "starting")]
    calls = [_call(link.handle.cancel, number) for link in reachable]
    await asyncio.gather(*calls, return_exceptions=True)


async def _open_store(generation: Generation, links: Links) -> tuple[str, int]:
    async with asyncio.timeout(CALL_S):
        return await links[generation.workers[0]].handle.open_store.remote()


async def _call(method: Any, argument: Any) -> Any:
    async with asyncio.timeout(CALL_S):
        return await method.remote(argument)
