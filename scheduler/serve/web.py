"""The HTTP side: status page, metrics and a health check, served by uvicorn inside the scheduler's event loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from scheduler.rpc.server import TlsFiles
from scheduler.status_page.access import Authorise, may_view

STOP_TIMEOUT_S = 1
"""How long open pages may go on when the scheduler stops."""


class PageServer(uvicorn.Server):
    """uvicorn, leaving the process's signals alone: the scheduler stops all of its parts itself."""

    def __init__(self, app: Starlette, tls: TlsFiles | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="on",
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=STOP_TIMEOUT_S,
                ssl_certfile=str(tls.certificate) if tls else None,
                ssl_keyfile=str(tls.key) if tls else None,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def add_operations(page: Starlette, registry: CollectorRegistry, authorise: Authorise) -> Starlette:
    """The page with `/metrics` (for whoever may see the page) and `/healthz` (for everyone)."""

    async def metrics(request: Request) -> Response:
        if not may_view(request, authorise):
            message = "A viewer token is needed: send it as `Authorization: Bearer TOKEN`.\n"
            return PlainTextResponse(message, 401, headers={"www-authenticate": 'Bearer realm="fallow"'})
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    async def healthz(request: Request) -> Response:
        return PlainTextResponse("ok\n")

    page.router.routes[:0] = [Route("/metrics", metrics), Route("/healthz", healthz)]
    return page
