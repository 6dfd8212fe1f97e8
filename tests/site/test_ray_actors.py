"""What a worker is told of its devices, without a cluster; placement itself is in test_real_site."""

from __future__ import annotations

import asyncio

import pytest

from runtime.site.ray_actors import _device_options, _to_the_end


def test_a_worker_sees_its_accelerators_and_ray_does_not_change_that() -> None:
    variables = _device_options(("nvidia:2", "nvidia:5"))["runtime_env"]["env_vars"]
    assert variables["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert variables["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] == "1"


def test_a_worker_on_cores_needs_no_process_of_its_own() -> None:
    assert _device_options(("cpu:0",)) == {}


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
