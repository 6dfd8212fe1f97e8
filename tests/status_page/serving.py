"""Serves the page of a hand-made loop on a free port, in a thread of its own."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import uvicorn

from scheduler.status_page.app import create_app

Authorise = Callable[[str | None, bool], bool]


@dataclass
class Served:
    """A page that is up."""

    url: str
    server: uvicorn.Server


def open_to_all(token: str | None, is_local: bool) -> bool:
    """Nobody is asked for a token."""
    return True


@contextlib.contextmanager
def served(loop: Any, authorise: Authorise = open_to_all, port: int = 0) -> Iterator[Served]:
    """The page of `loop`, until the block ends."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    app = create_app(cast(Any, loop), authorise)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", server)
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
