"""The status page: one document, its assets, and its state as JSON and as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scheduler.clock import Clock, SystemClock
from scheduler.domain.changes import LogRow
from scheduler.status_page.access import HEADERS, Authorise, cookie_in_place_of_token, may_view
from scheduler.status_page.detail import node_detail
from scheduler.status_page.feed import Feed, Viewer, to_json

if TYPE_CHECKING:
    from scheduler.control_loop import ControlLoop

ASSETS = Path(__file__).parent / "assets"
SEND_TIMEOUT_S = 30.0
"""A page that takes nothing for so long is gone."""

_log = logging.getLogger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    loop: ControlLoop,
    authorise: Authorise,
    clock: Clock | None = None,
    recent: Iterable[LogRow] = (),
) -> Starlette:
    """The page of a running loop, to be served with its lifespan on.

    `authorise(token, is_local)` is asked for every request but those for assets. `clock` is the loop's own; `recent`
    are the newest rows of its log, oldest first, so that a restarted scheduler does not show an empty list.
    """
    page = _Page(Feed(loop, clock or SystemClock(), recent), loop)
    guarded: Mapping[str, Endpoint] = {
        "/": page.document,
        "/events": page.events,
        "/api/state": page.state,
        "/api/nodes/{node:path}": page.node,
    }
    routes = [Route(path, _guard(endpoint, authorise), methods=["GET"]) for path, endpoint in guarded.items()]
    assets = Mount("/assets", StaticFiles(directory=ASSETS))
    return Starlette(routes=[*routes, assets], lifespan=page.lifespan, middleware=[Middleware(_SafeHeaders)])


class _Page:
    def __init__(self, feed: Feed, loop: ControlLoop) -> None:
        self._feed = feed
        self._loop = loop

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        feeding = asyncio.create_task(self._feed.run(self._loop.subscribe()))
        feeding.add_done_callback(_say_why_it_ended)
        try:
            yield
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])

    async def document(self, request: Request) -> Response:
        return FileResponse(ASSETS / "index.html", headers={"cache-control": "no-cache"})

    async def events(self, request: Request) -> Response:
        return EventSourceResponse(self._messages(), send_timeout=SEND_TIMEOUT_S, headers={"x-accel-buffering": "no"})

    async def _messages(self) -> AsyncIterator[ServerSentEvent]:
        event = "whole"
        async for text in self._feed.messages():
            yield ServerSentEvent(text, event=event)
            event = "delta"

    async def state(self, request: Request) -> Response:
        self._feed.refresh()
        return Response(Viewer().update(self._feed), media_type="application/json", headers=_UNCACHED)

    async def node(self, request: Request) -> Response:
        name = request.path_params["node"]
        node = self._loop.inventory.nodes.get(name)
        if node is None:
            return JSONResponse({"error": f"there is no node {name!r}: /api/state lists those there are"}, 404)
        detail = to_json(node_detail(self._loop.inventory, node))
        return Response(detail, media_type="application/json", headers=_UNCACHED)


def _say_why_it_ended(feeding: asyncio.Task[None]) -> None:
    if not feeding.cancelled() and (error := feeding.exception()):
        _log.error("the status page stands still; restart the scheduler to mend it", exc_info=error)


_UNCACHED = {"cache-control": "no-store"}


def _guard(endpoint: Endpoint, authorise: Authorise) -> Endpoint:
    async def guarded(request: Request) -> Response:
        if not may_view(request, authorise):
            return _refusal(request)
        if "token" in request.query_params:
            return cookie_in_place_of_token(request)
        return await endpoint(request)

    return guarded


def _refusal(request: Request) -> Response:
    headers = {"www-authenticate": 'Bearer realm="fallow"', **_UNCACHED}
    if "text/html" in request.headers.get("accept", ""):
        return FileResponse(ASSETS / "unauthorised.html", status_code=401, headers=headers)
    message = (
        "A viewer token is needed. Make one with `fallow token create --role viewer --name NAME` and send it as "
        "`Authorization: Bearer TOKEN`, or open the page with ?token=TOKEN."
    )
    return JSONResponse({"error": message}, status_code=401, headers=headers)


class _SafeHeaders:
    """Adds the security headers to every answer, streams included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *_HEADER_BYTES]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)


_HEADER_BYTES = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
