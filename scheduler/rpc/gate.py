"""The one gate that every call passes: who is it, may it, and how refusals are answered and counted."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from scheduler.domain.reasons import Reason, Refused
from scheduler.rpc.auth import ROLES, Auth, check_role
from scheduler.rpc.refusals import abort, status_code
from scheduler.store.failures import StoreFailed

_log = logging.getLogger(__name__)

RECHECK_S = 15.0
"""How often an open stream's token is looked up again: a revoked agent or site is cut off within this time."""


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs alone
    """Wraps every method of ours; `calls` counts them by (method, status)."""

    def __init__(self, auth: Auth, recheck_s: float = RECHECK_S) -> None:
        self._auth = auth
        self._recheck_s = recheck_s
        self.calls: Counter[tuple[str, str]] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method not in ROLES:
            return handler
        wrap = self._streaming if handler.response_streaming else self._single
        kind = f"{_way(handler.request_streaming)}_{_way(handler.response_streaming)}"
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(wrap(method, getattr(handler, kind)), handler.request_deserializer, handler.response_serializer)

    def _single(self, method: str, inner: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> Any:
            async with self._guarded(method, context):
                return await inner(request, context)

        return call

    def _streaming(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Any) -> None:
            async with (
                self._guarded(method, context),
                self._cut_off_when_revoked(context),
                aclosing(inner(request, context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        return call

    @asynccontextmanager
    async def _guarded(self, method: str, context: Any) -> AsyncIterator[None]:
        status = grpc.StatusCode.CANCELLED
        try:
            check_role(await self._auth.caller(context.invocation_metadata()), method)
            yield
            status = grpc.StatusCode.OK
        except (Refused, StoreFailed) as refused:
            status = status_code(refused.reason)
            await abort(context, refused.reason)
        except grpc.aio.AbortError:
            status = context.code()
            raise
        except Exception:
            status = grpc.StatusCode.INTERNAL
            _log.exception("%s failed", method)
            await context.abort(status, "The scheduler failed at this call; its log says where.")
        finally:
            self.calls[method.rpartition("/")[2], status.name] += 1

    @asynccontextmanager
    async def _cut_off_when_revoked(self, context: Any) -> AsyncIterator[None]:
        """Streams outlive their tokens' validity unless someone looks: cancels the stream and says why."""
        stream, refusals = asyncio.current_task(), list[Reason]()

        async def look() -> None:
            while not refusals:
                await asyncio.sleep(self._recheck_s)
                try:
                    await self._auth.caller(context.invocation_metadata())
                except Refused as refused:
                    refusals.append(refused.reason)
                except StoreFailed:
                    _log.warning("cannot look up a token again; its stream stays open")
            assert stream is not None
            stream.cancel()

        watcher = asyncio.create_task(look())
        try:
            yield
        except asyncio.CancelledError:
            if refusals:
                raise Refused(refusals[0]) from None
            raise
        finally:
            watcher.cancel()


def _way(streaming: bool) -> str:
    return "stream" if streaming else "unary"
