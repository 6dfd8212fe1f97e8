"""The gateway as an actor: the endpoint and its event loop in a thread, methods for the controller beside it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from runtime.serving.actors import ModelUnusable
from runtime.serving.dispatch import Dispatcher
from runtime.serving.gateway import HOLD_S, Gateway, ServedModel
from runtime.serving.routing import Address
from runtime.serving.text import TextCodec, TokenizerMissing

Result = TypeVar("Result")
EXPIRE_EVERY_S = 1.0


class GatewayWorker:
    """One served model's endpoint. Its constructor binds nothing; `start` does, and may be called again."""

    def __init__(
        self,
        model: str,
        folder: str,
        secret: bytes,
        host: str,
        port: int,
        max_batch: int,
        max_length: int,
        queue_limit: int,
        api_key: str | None,
    ) -> None:
        self._model, self._folder, self._host, self._port = model, Path(folder), host, port
        self._max_length, self._api_key = max_length, api_key
        self._dispatcher = Dispatcher(secret, max_batch, queue_limit)
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._server: uvicorn.Server | None = None
        self._url = ""
        threading.Thread(target=self._loop.run_forever, name="gateway", daemon=True).start()

    def start(self) -> str:
        """Serve, unless that is done already; the URL. Raises `ModelUnusable`, or `OSError` for a port in use."""
        with self._lock:
            if not self._url:
                gateway = self._gateway()
                sock = self._bind()
                self._server = uvicorn.Server(
                    uvicorn.Config(gateway.app, log_level="warning", lifespan="off", access_log=False)
                )
                asyncio.run_coroutine_threadsafe(self._server.serve([sock]), self._loop)
                asyncio.run_coroutine_threadsafe(self._expire_forever(), self._loop)
                host, port = sock.getsockname()[:2]
                self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return self._url

    def set_engines(self, engines: Mapping[str, Address], understudies: Mapping[str, Address]) -> None:
        """Use exactly these engines, and these while there are none; requests on others go on here."""
        given = ({name: (host, port) for name, (host, port) in some.items()} for some in (engines, understudies))
        self._call(self._dispatcher.move_to(*given))

    def stall(self, ago_s: float) -> tuple[float, int]:
        """The longest time that a stream stood still within `ago_s`, and how many have stood since then."""
        return self._call(self._stall(ago_s))

    def stats(self) -> dict[str, float]:
        """Counts of requests and tokens."""
        return self._call(self._stats())

    def stop(self) -> None:
        """End every request with an error and close the endpoint."""
        self._call(self._stop())

    def _gateway(self) -> Gateway:
        try:
            codec = TextCodec.from_folder(self._folder)
        except TokenizerMissing as error:
            raise ModelUnusable(str(error)) from None
        model = ServedModel(self._model, codec.vocab_size, self._max_length)
        return Gateway(model, codec, self._dispatcher, self._api_key)

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            return socket.create_server((self._host, self._port), family=family, backlog=1024)
        except OSError as error:
            where = f"{self._host}:{self._port}"
            raise OSError(f"the endpoint cannot listen on {where} ({error.strerror}): choose another port") from None

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _stall(self, ago_s: float) -> tuple[float, int]:
        return self._dispatcher.stall(ago_s)

    async def _stats(self) -> dict[str, float]:
        return self._dispatcher.counts()

    async def _stop(self) -> None:
        await self._dispatcher.close()
        if self._server is not None:
            self._server.should_exit = True

    async def _expire_forever(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            self._dispatcher.expire(HOLD_S)
