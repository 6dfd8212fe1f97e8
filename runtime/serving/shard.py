"""An expert shard: holds some experts of a model and passes rows of tokens through them for any engine that asks."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch

from runtime.serving import wire
from runtime.serving.expert_calls import ExpertCall, Views, decode_call, raw
from runtime.serving.routing import ExpertId

log = logging.getLogger(__name__)


class ExpertStore(Protocol):
    """The experts that a shard has in memory."""

    def load(self, experts: Iterable[ExpertId]) -> int:
        """Have these experts too; the number of bytes read. Raises `ModelError` naming what is wrong."""

    def drop(self, experts: Iterable[ExpertId]) -> None:
        """Free these experts' memory."""

    def loaded(self) -> frozenset[ExpertId]:
        """What is in memory now."""

    def run(self, layer: int, x_PD: torch.Tensor, experts: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
        """The first `counts[0]` rows through `experts[0]`, and so on, (P, D); experts ascend. Raises `KeyError` if one
        is not loaded."""


def answer(store: ExpertStore, call: ExpertCall) -> torch.Tensor:
    """`y_PD`: each pair's token through its expert. Raises `KeyError` where an expert is not loaded."""
    return store.run(call.layer, call.rows(), call.experts, call.counts)


class ShardServer:
    """Serves expert calls on a socket, one thread per engine."""

    def __init__(self, store: ExpertStore, secret: bytes, host: str = "127.0.0.1", port: int = 0) -> None:
        self._store = store
        self._secret = secret
        self._listener = socket.create_server((host, port), backlog=64)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.calls = 0
        self.compute_s = 0.0

    def start(self) -> None:
        """Begin to accept engines."""
        threading.Thread(target=self._accept, name="shard-accept", daemon=True).start()

    def close(self) -> None:
        """Stop serving and hang up on every engine."""
        self._closing.set()
        wire.hang_up(self._listener)
        with self._lock:
            for sock in self._connections:
                wire.hang_up(sock)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name="shard-serve", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with self._lock:
            self._connections.add(sock)
        try:
            wire.welcome(sock, self._secret)
            reader, views = wire.FrameReader(reuses=True), Views()
            with torch.inference_mode():
                while (frame := reader.read(sock)) is not None:
                    self._reply(sock, frame, views)
        except OSError as error:
            if not self._closing.is_set():
                log.info("an engine's connection ended: %s", error)
        finally:
            with self._lock:
                self._connections.discard(sock)
            sock.close()

    def _reply(self, sock: socket.socket, frame: wire.Frame, views: Views) -> None:
        if frame.kind is not wire.Kind.CALL:
            raise wire.WireError(f"a shard does not answer {frame.kind.name} frames")
        call = decode_call(frame.body, views)
        began_s = time.monotonic()
        try:
            y_PD = answer(self._store, call)
        except KeyError as error:
            sock.sendall(wire.encode(wire.Kind.FAULT, frame.call, f"not loaded: {error}".encode()))
            return
        with self._lock:
            self.calls += 1
            self.compute_s += time.monotonic() - began_s
        send_parts(sock, wire.Kind.REPLY, frame.call, [raw(y_PD)])


def send_parts(sock: socket.socket, kind: wire.Kind, call: int, parts: list[bytes | memoryview]) -> None:
    """Send a frame whose body is `parts`, copying nothing; `sock` is blocking."""
    length = sum(map(len, parts))
    pieces = [wire.header(kind, call, length), *parts]
    sent = sock.sendmsg(pieces)
    if sent < wire.HEADER.size + length:
        for left in wire.unsent(pieces, sent):
            sock.sendall(left)
