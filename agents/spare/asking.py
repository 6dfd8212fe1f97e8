"""Asking all sources at once, so that none can hold up the agent or lend by being silent."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from agents.spare import Judgement, Now, Source, together

T = TypeVar("T")
_ANSWER_S = 15.0


class Asking:
    """Puts the words of all sources together. One that fails, or is silent for too long, makes nothing spare."""

    def __init__(self, sources: Sequence[Source], devices: tuple[str, ...]) -> None:
        self.sources, self.devices = tuple(sources), devices
        self._unanswered: dict[int, asyncio.Task[Judgement]] = {}

    async def judge(self, now: Now) -> Judgement:
        """What all sources together judge spare."""
        answers = await asyncio.gather(*(self._ask(index, now) for index in range(len(self.sources))))
        return together(answers, self.devices)

    async def _ask(self, index: int, now: Now) -> Judgement:
        source = self.sources[index]
        task = self._unanswered.pop(index, None) or asyncio.create_task(source.judge(now))
        done, _ = await asyncio.wait({task}, timeout=_ANSWER_S)
        if not done:  # it is not asked a second time before it has answered
            self._unanswered[index] = task
            return Judgement((), source.name, f"has not answered for {_ANSWER_S:g} s")
        try:
            return task.result()
        except Exception as error:  # whatever broke in a source, the node must not be lent by it
            return Judgement((), source.name, f"failed: {error!r}")


async def off_loop(call: Callable[[], T]) -> T:
    """Run a blocking call on a thread that does not keep the process alive, should the call never return."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            tell = partial(answer.set_result, call())
        except Exception as error:
            tell = partial(answer.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if answer.done() else tell())

    threading.Thread(target=work, daemon=True).start()
    return await answer
