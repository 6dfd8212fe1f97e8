"""Pages on their way to another engine: at once when an engine is to leave, one by one where another stands by for it.

body: name 16s | dtype u32 | layers, heads, tokens, key size, value size, filter layers, hidden u32 | keys | values
      | filter inputs
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import struct
import threading
from collections.abc import Iterable

import torch

from runtime.moe.cache import CachePart
from runtime.serving import wire
from runtime.serving.expert_calls import DTYPES, raw
from runtime.serving.pages import Page
from runtime.serving.routing import Address
from runtime.serving.shard import send_parts

log = logging.getLogger(__name__)

HEAD = struct.Struct("<16s8I")
ANSWER_S = 5.0


def encode_page(page: Page) -> list[bytes | memoryview]:
    """The body's parts, in order."""
    name, part = page
    layers, heads, tokens, key_size = part.keys.shape
    filters, _, hidden = part.filter_inputs.shape
    sizes = (DTYPES.index(part.keys.dtype), layers, heads, tokens, key_size, part.values.shape[3], filters, hidden)
    return [HEAD.pack(name, *sizes), *(raw(tensor) for tensor in part)]


def decode_page(body: bytearray | bytes, like: CachePart) -> Page:
    """The page in a body. Raises `WireError` unless it is one of a model with caches `like` these."""
    if len(body) < HEAD.size:
        raise wire.WireError("a page is cut short")
    name, code, layers, heads, tokens, key_size, value_size, filters, hidden = HEAD.unpack_from(body)
    expected = (DTYPES.index(like.keys.dtype), *like.keys.shape[:2], like.keys.shape[3], like.values.shape[3])
    if (code, layers, heads, key_size, value_size) != expected or filters not in (0, len(like.filter_inputs)):
        raise wire.WireError("a page of another model")
    shapes = ((layers, heads, tokens, key_size), (layers, heads, tokens, value_size), (filters, 2, hidden))
    sizes = [shape[0] * shape[1] * shape[2] * (shape[3] if len(shape) > 3 else 1) for shape in shapes]
    dtype, at = DTYPES[code], HEAD.size
    if len(body) != at + sum(sizes) * dtype.itemsize:
        raise wire.WireError(f"a page of {tokens} tokens does not fit its {len(body)} bytes")
    tensors = []
    for shape, size in zip(shapes, sizes, strict=True):
        flat = torch.frombuffer(body, dtype=dtype, count=size, offset=at) if size else torch.empty(0, dtype=dtype)
        tensors.append(flat.view(shape))
        at += size * dtype.itemsize
    return name, CachePart(*tensors)


def hand_over(pages: Iterable[Page], to: Address, secret: bytes) -> int:
    """Bring pages to another engine; how many it has taken when this returns. Raises `OSError`."""
    with contextlib.closing(wire.connect(to, secret)) as sock:
        sock.settimeout(ANSWER_S)
        count = 0
        for page in pages:
            send_parts(sock, wire.Kind.PAGE, 0, encode_page(page))
            count += 1
        sock.sendall(wire.encode_json({"op": "sync"}))
        reader = wire.FrameReader()
        while "synced" not in (frame.json() if (frame := reader.read(sock)) else {}):
            pass  # beats
        return count


class Mirror:
    """Sends every new page on to another engine, which then has them should this one die."""

    def __init__(self, to: Address, secret: bytes) -> None:
        self.to = to
        self._secret = secret
        self._queue: queue.Queue[Page | None] = queue.Queue(maxsize=4096)
        threading.Thread(target=self._run, name="engine-mirror", daemon=True).start()

    def put(self, page: Page) -> None:
        """Returns at once; a page for which there is no room is left out."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(page)

    def close(self) -> None:
        """Send what has been put, and end."""
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(None)

    def _run(self) -> None:
        try:
            with contextlib.closing(wire.connect(self.to, self._secret)) as sock:
                threading.Thread(target=_drain, args=(sock,), name="engine-mirror-beats", daemon=True).start()
                while (page := self._queue.get()) is not None:
                    send_parts(sock, wire.Kind.PAGE, 0, encode_page(page))
        except OSError as error:
            log.info("no engine stands by at %s:%d any more: %s", *self.to, error)


def _drain(sock: socket.socket) -> None:
    """Read and forget what the other engine says, until the connection ends."""
    with contextlib.suppress(OSError):
        while sock.recv(4096):
            pass
