"""What a worker is told of its devices, without a cluster; placement itself is in test_real_site."""

from __future__ import annotations

import asyncio
import os

import cloudpickle
import pytest

from runtime.site.ray_actors import _to_the_end, seeing


class Worker:
    def __init__(self, name: str) -> None:
        self.name = name
        self.saw = os.environ.get("CUDA_VISIBLE_DEVICES")


def test_a_worker_sees_its_accelerators_before_it_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    made = seeing(("nvidia:2", "nvidia:5"), Worker)("w0")
    assert (made.name, made.saw) == ("w0", "2,5")
    copy = cloudpickle.loads(cloudpickle.dumps(seeing(("nvidia:3",), Worker)))
    assert copy("w1").saw == "3", "it travels to its node"


def test_a_worker_on_cores_is_as_it_was() -> None:
    assert seeing(("cpu:0",), Worker) is Worker


async def test_a_creation_that_began_is_over_before_its_cancellation_is() -> None:
    may_end, ended = asyncio.Event(), asyncio.Event()

    async def create() -> None:
        await may_end.wait()
        ended.set()

    waiting = asyncio.create_task(_to_the_end(create()))
    await asyncio.sleep(0)
    waiting.cancel()
    asyncio.get_running_loop().call_later(0.05, may_end.set)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
