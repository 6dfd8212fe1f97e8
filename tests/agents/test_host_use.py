"""A real process of another user competes for the machine: the host is released at once, and does not flap."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from agents.__main__ import read_clock
from agents.probes.cpu import CpuProbe
from agents.probes.people import OtherUsers
from agents.spare.host import Host
from agents.spare.hysteresis import Thresholds

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user"),
]

_SOMEBODY = 54_321
_LOOK_S = 0.5


@contextmanager
def competing(part: float) -> Iterator[None]:
    """A process of somebody else's that wants this part of a core. It forks: others may not run this Python."""
    child = os.fork()
    if child == 0:
        try:
            os.nice(-10)
            os.setuid(_SOMEBODY)
            _work(part)
        finally:
            os._exit(1)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _work(part: float, period_s: float = 0.1) -> None:
    while True:
        end_s = time.thread_time() + period_s * part
        while time.thread_time() < end_s:
            pass
        time.sleep(period_s * (1 - part))


def host(thresholds: Thresholds) -> Host:
    """Judges one group of all cores by what the test's own user does there."""
    probe = CpuProbe(others=OtherUsers(os.getuid(), counts=lambda uid: uid == _SOMEBODY))
    return Host(probe, ("cpu:0",), thresholds)


async def turns(source: Host, until: Callable[[bool], bool], limit_s: float) -> list[tuple[float, bool]]:
    """(seconds, spare) of every look, until one is accepted or the time is over."""
    seen, began_s = [], time.monotonic()
    while time.monotonic() - began_s < limit_s:
        spare = bool((await source.judge(read_clock())).spare)
        seen.append((time.monotonic() - began_s, spare))
        if until(spare):
            break
        await asyncio.sleep(_LOOK_S)
    return seen


async def test_a_competing_process_has_the_host_back_within_two_seconds() -> None:
    source = host(
        Thresholds(busy_above=0.25 / (os.cpu_count() or 1), spare_below=0.1 / (os.cpu_count() or 1), spare_after_s=1)
    )
    assert (await turns(source, lambda spare: spare, 20))[-1][1], "nobody else is here, so it is spare"
    with competing(1.0):
        seen = await turns(source, lambda spare: not spare, 10)
    assert not seen[-1][1]
    assert seen[-1][0] <= 2.0


async def test_a_load_that_hovers_at_the_threshold_does_not_make_it_flap() -> None:
    cores = os.cpu_count() or 1
    source = host(Thresholds(busy_above=0.25 / cores, spare_below=0.1 / cores, spare_after_s=4))
    assert (await turns(source, lambda spare: spare, 20))[-1][1]
    with competing(0.25):
        seen = await turns(source, lambda spare: False, 15)
    changes = sum(before[1] != after[1] for before, after in itertools.pairwise(seen))
    assert changes <= 1, seen
