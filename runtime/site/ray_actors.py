"""`Actors` on Ray: detached actors, found again by name, each on the exact node of its lease.

Ray keeps a process ready for every device of a node, but not for an actor that brings an environment of its own: that
one waits for a new process. So an actor's devices are made visible by itself, before anything in it looks for them,
and everything else is inherited from the raylet, whose environment the node's agent made.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any

from runtime.site.controller import LeaseKey, NodeMissing, WorkerSlot
from runtime.site.ray_driver import NAMESPACE

log = logging.getLogger(__name__)


class RayActors:
    """Implements `runtime.site.controller.Actors`.

    A class may say `actor_options: ClassVar[dict[str, object]]`, e.g. `{"max_concurrency": 4}`.
    """

    def __init__(self, ray_node: Callable[[LeaseKey], str], head_node: str) -> None:
        self._ray_node = ray_node
        self._head_node = head_node

    async def start(self, slot: WorkerSlot, actor_class: type, *args: object, **kwargs: object) -> Any:
        """See `Actors.start`. Raises what the actor's constructor raised, as Ray wraps it."""
        node = self._ray_node(slot.lease)
        on_devices = seeing(slot.devices, actor_class)
        return await self._find_or_create(slot.worker, node, {"num_cpus": 1}, on_devices, args, kwargs)

    async def start_on_head(self, name: str, actor_class: type, *args: object, **kwargs: object) -> Any:
        """See `Actors.start_on_head`."""
        return await self._find_or_create(name, self._head_node, {"num_cpus": 0}, actor_class, args, kwargs)

    async def stop(self, name: str) -> None:
        """See `Actors.stop`."""
        await asyncio.to_thread(_kill, name)

    async def _find_or_create(
        self, name: str, node: str, options: dict[str, Any], actor_class: type, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        import ray

        found = await asyncio.to_thread(_find, name)
        if found is not None:
            return found
        handle = await _to_the_end(asyncio.to_thread(_create, name, node, options, actor_class, args, kwargs))
        try:
            await handle.__ray_ready__.remote()
        except (ray.exceptions.ActorUnschedulableError, ray.exceptions.ActorUnavailableError) as error:
            raise NodeMissing(f"{name}: its node left while it started") from error
        return handle


async def _to_the_end(creation: Coroutine[Any, Any, Any]) -> Any:
    """Even when cancelled: a creation that went on unseen would come after the caller's `stop`."""
    task = asyncio.ensure_future(creation)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        raise


def seeing(devices: tuple[str, ...], actor_class: type) -> type:
    """The class, whose objects make exactly these accelerators visible to their process before anything else.

    Too late only for a process that has used CUDA already, which no process does that waits for an actor.
    """
    numbers = [device.partition(":")[2] for device in devices if device.startswith("nvidia:")]
    if not numbers:
        return actor_class
    settings = {"CUDA_VISIBLE_DEVICES": ",".join(numbers)}

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        os.environ.update(settings)
        actor_class.__init__(self, *args, **kwargs)  # type: ignore[misc]  # self is one of them

    return type(actor_class.__name__, (actor_class,), {"__init__": __init__})


def _find(name: str) -> Any | None:
    import ray

    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def _create(
    name: str, node: str, options: dict[str, Any], actor_class: type, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    import ray

    return (
        ray.remote(actor_class)
        .options(
            name=name,
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=0,
            max_task_retries=0,
            label_selector={"ray.io/node-id": node},
            **getattr(actor_class, "actor_options", {}),
            **options,
        )
        .remote(*args, **kwargs)
    )


def _kill(name: str) -> None:
    import ray

    handle = _find(name)
    if handle is not None:
        ray.kill(handle, no_restart=True)


def head_node() -> str:
    """Ray's id of the head's node, which is where this driver is. Blocking."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def stop_all() -> None:
    """End every actor of ours on the cluster, whoever started it. Blocking."""
    import ray

    for entry in ray.util.list_named_actors(all_namespaces=True):
        if entry["namespace"] == NAMESPACE:
            _kill(entry["name"])
