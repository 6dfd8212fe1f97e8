"""An engine as a process of its own: takes sequences from the gateway over a socket, sends tokens back.

One thread steps the engine; sequences belong to the gateway connection that brought them and end with it.
"""

from __future__ import annotations

import itertools
import logging
import queue
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from runtime.serving import wire
from runtime.serving.dataplane import PlaneClosed
from runtime.serving.engine import Emitted, Engine
from runtime.serving.handover import Mirror, decode_page, hand_over
from runtime.serving.params import SamplingParams
from runtime.serving.sequences import Sequence

log = logging.getLogger(__name__)

BEAT_S = 0.5
SEND_TIMEOUT_S = 10.0


@dataclass(slots=True, eq=False)
class _Gateway:
    """One gateway connection; `send` may be called from any thread."""

    id: int
    sock: socket.socket
    lock: threading.Lock = field(default_factory=threading.Lock)

    def send(self, message: dict[str, Any]) -> None:
        """Raises `OSError` if the gateway has gone or does not read."""
        with self.lock:
            self.sock.sendall(wire.encode_json(message))


class EngineServer:
    """Runs an `Engine` for the gateways that connect."""

    def __init__(self, engine: Engine, vocab_size: int, secret: bytes, host: str = "127.0.0.1", port: int = 0) -> None:
        self._engine = engine
        self._vocab_size = vocab_size
        self._secret = secret
        self._listener = socket.create_server((host, port), backlog=16)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._inbox: queue.SimpleQueue[tuple[_Gateway, dict[str, Any] | None]] = queue.SimpleQueue()
        self._gateways: dict[int, _Gateway] = {}
        self._owned: dict[int, set[str]] = {}  # gateway -> its sequences' keys; the stepping thread's alone
        self._ids = itertools.count(1)
        self._closing = threading.Event()
        self._mirrored: Mirror | None = None
        self.steps = 0
        self.tokens = 0
        self.busy_s = 0.0

    def start(self) -> None:
        """Begin to serve."""
        for target in (self._accept, self._step_forever, self._beat):
            threading.Thread(target=target, name=f"engine{target.__name__}", daemon=True).start()

    def close(self) -> None:
        """Stop; gateways see their connections end and take their sequences elsewhere."""
        self._closing.set()
        wire.hang_up(self._listener)
        for gateway in list(self._gateways.values()):
            wire.hang_up(gateway.sock)

    # --- connections -------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            gateway = _Gateway(next(self._ids), sock)
            threading.Thread(target=self._listen, args=(gateway,), name="engine-gateway", daemon=True).start()

    def _listen(self, gateway: _Gateway) -> None:
        try:
            wire.welcome(gateway.sock, self._secret)
            gateway.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _timeval(SEND_TIMEOUT_S))
            self._gateways[gateway.id] = gateway
            reader = wire.FrameReader()
            while (frame := reader.read(gateway.sock)) is not None:
                if frame.kind is wire.Kind.PAGE:
                    self._engine.pages.add([decode_page(frame.body, self._engine.pages.like)])
                else:
                    self._hear(gateway, frame.json())
        except OSError as error:
            log.info("a gateway's connection ended: %s", error)
        finally:
            self._gateways.pop(gateway.id, None)
            self._inbox.put((gateway, None))
            gateway.sock.close()

    def _hear(self, gateway: _Gateway, message: dict[str, Any]) -> None:
        if message.get("op") == "sync":
            gateway.send({"synced": len(self._engine.pages)})
        elif message.get("op") == "mirror":
            self._mirror(message["to"])
        else:
            self._inbox.put((gateway, message))

    def _mirror(self, to: list[Any] | None) -> None:
        """From now on another engine is sent every new page, or none is any more."""
        known = self._mirrored
        if known is not None and to is not None and known.to == (to[0], to[1]):
            return
        if known is not None:
            known.close()
        self._mirrored = None if to is None else Mirror((to[0], to[1]), self._secret)
        self._engine.pages.on_new = None if self._mirrored is None else self._mirrored.put

    def _beat(self) -> None:
        while not self._closing.wait(BEAT_S):
            for gateway in list(self._gateways.values()):
                self._send(gateway, {"beat": self.steps})

    def _send(self, gateway: _Gateway, message: dict[str, Any]) -> None:
        try:
            gateway.send(message)
        except OSError:
            wire.hang_up(gateway.sock)  # its reader notices

    # --- the stepping thread -----------------------------------------------------------------------------------

    def _step_forever(self) -> None:
        while not self._closing.is_set():
            self._read_inbox(block=not self._busy())
            if self._busy():
                self._step()

    def _busy(self) -> bool:
        return bool(self._engine.scheduler.running or self._engine.scheduler.waiting)

    def _read_inbox(self, block: bool) -> None:
        try:
            item = self._inbox.get(timeout=BEAT_S) if block else self._inbox.get_nowait()
            while True:
                self._handle(*item)
                item = self._inbox.get_nowait()
        except queue.Empty:
            return

    def _handle(self, gateway: _Gateway, message: dict[str, Any] | None) -> None:
        if message is None:
            for key in self._owned.pop(gateway.id, set()):
                self._engine.scheduler.remove(key)
        elif message.get("op") == "add":
            self._add(gateway, message)
        elif message.get("op") == "hand_over":
            self._hand_over(gateway, message)
        elif message.get("op") == "cancel":
            self._owned.get(gateway.id, set()).discard(key := f"{gateway.id}/{message['id']}")
            self._engine.scheduler.remove(key)

    def _hand_over(self, gateway: _Gateway, message: dict[str, Any]) -> None:
        """Bring what has been computed of some sequences to another engine, while they go on here."""
        keys = {f"{gateway.id}/{id}" for id in message["ids"]}
        mine = [sequence for sequence in self._engine.scheduler.running if sequence.id in keys]
        pages = {name: part for sequence in mine for name, part in self._engine.pages.held(sequence)}

        def bring() -> None:
            brought = 0
            try:
                brought = hand_over(pages.items(), (message["to"][0], message["to"][1]), self._secret)
            except OSError as error:
                log.warning("nothing could be handed over: %s", error)
            self._send(gateway, {"handed": brought})

        threading.Thread(target=bring, name="engine-hand-over", daemon=True).start()

    def _add(self, gateway: _Gateway, message: dict[str, Any]) -> None:
        key = f"{gateway.id}/{message['id']}"
        try:
            params = SamplingParams.from_json(message["params"])
            sequence = Sequence(key, tuple(message["prompt"]), params, list(message["emitted"]))
            _check_tokens(sequence.prompt, self._vocab_size)
        except (KeyError, TypeError, ValueError) as error:
            self._send(gateway, {"faults": [[message.get("id"), f"not a request: {error}"]]})
            return
        self._owned.setdefault(gateway.id, set()).add(key)
        self._engine.scheduler.add(sequence)

    def _step(self) -> None:
        started = time.monotonic()
        running = [sequence.id for sequence in self._engine.scheduler.running]
        try:
            emitted = self._engine.step()
        except PlaneClosed:
            self.close()
            return
        except Exception as error:
            log.exception("a step failed")
            running = running or [sequence.id for sequence in self._engine.scheduler.running]
            self._give_up(running, f"{type(error).__name__}: {error}")
            return
        self.steps += 1
        self.tokens += len(emitted)
        self.busy_s += time.monotonic() - started
        self._deliver(emitted)

    def _deliver(self, emitted: list[Emitted]) -> None:
        by_gateway: dict[int, list[list[Any]]] = {}
        for item in emitted:
            owner, _, id = item.sequence.partition("/")
            sampled = item.sampled
            row = [id, item.position, sampled.token, item.finish, sampled.logprob, sampled.top]
            by_gateway.setdefault(int(owner), []).append(row)
            if item.finish:
                self._owned.get(int(owner), set()).discard(item.sequence)
        for owner_id, rows in by_gateway.items():
            if gateway := self._gateways.get(owner_id):
                self._send(gateway, {"tokens": rows})

    def _give_up(self, keys: list[str], reason: str) -> None:
        """A step failed: hand its sequences back rather than stop serving the others."""
        for key in keys:
            self._engine.scheduler.remove(key)
            owner, _, id = key.partition("/")
            self._owned.get(int(owner), set()).discard(key)
            if gateway := self._gateways.get(int(owner)):
                self._send(gateway, {"faults": [[id, reason]]})


def _check_tokens(tokens: tuple[int, ...], vocab_size: int) -> None:
    strange = [token for token in tokens if not 0 <= token < vocab_size]
    if strange:
        raise ValueError(f"token {strange[0]} is not in the model's vocabulary of {vocab_size}")


def _timeval(seconds: float) -> bytes:
    return int(seconds).to_bytes(8, "little") + bytes(8)
