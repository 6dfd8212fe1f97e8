"""Event files that TensorBoard reads, without its package: records of a length, a checksum and an encoded Event.

The format is TensorFlow's TFRecord (masked CRC-32C) around its `Event` message, of which three fields are used.
"""

from __future__ import annotations

import struct
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path


class EventFile:
    """Appends numbers to one file, made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"events.out.tfevents.{int(time.time())}.{uuid.uuid4().hex[:8]}"

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write what was measured at a step. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            if not file.tell():
                file.write(_record(_event(0, _field(3, b"brain.Event:2"))))
            values = b"".join(_field(1, _field(1, tag.encode()) + b"\x15" + _float(x)) for tag, x in numbers.items())
            file.write(_record(_event(step, _field(5, values))))


def _event(step: int, what: bytes) -> bytes:
    return b"\x09" + struct.pack("<d", time.time()) + b"\x10" + _varint(step) + what


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _float(x: float) -> bytes:
    return struct.pack("<f", x)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _table() -> Iterator[int]:
    for entry in range(256):
        for _ in range(8):
            entry = entry >> 1 ^ (0x82F63B78 if entry & 1 else 0)
        yield entry


_TABLE = tuple(_table())
