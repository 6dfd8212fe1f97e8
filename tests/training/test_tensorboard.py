"""Event files, read back by the format's own rules."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from runtime.training.tensorboard import EventFile, _checksum


def records(path: Path) -> list[bytes]:
    content, found = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert _checksum(content[:8]) == content[8:12]
        assert _checksum(content[12 : 12 + length]) == content[12 + length : 16 + length]
        found.append(content[12 : 12 + length])
        content = content[16 + length :]
    return found


def test_the_checksum_is_that_of_the_format() -> None:
    (masked,) = struct.unpack("<I", _checksum(b"123456789"))
    crc = 0xE3069283  # CRC-32C's published check value
    assert masked == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_file_begins_with_its_version_and_holds_every_number(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "tensorboard")
    file.add(1, {"loss": 2.5})
    file.add(300, {"loss": 1.5, "width": 3.0})
    (path,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    version, first, second = records(path)
    assert version.endswith(b"brain.Event:2")
    assert first[9:11] == b"\x10\x01"  # field 2: the step
    assert second[9:12] == b"\x10\xac\x02"  # 300
    assert struct.pack("<f", 2.5) in first
    assert b"width" in second
    assert struct.pack("<f", 3.0) in second


def test_a_folder_that_cannot_be_written_raises(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(OSError, match="tensorboard"):
        EventFile(tmp_path / "tensorboard").add(1, {"loss": 1.0})
