"""The owner's word: what is obeyed, what is refused, and how."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from agents.control_socket import Answer, BadCommand, obey, serve
from agents.folder import OwnersWord, prepare


class Owner:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def reclaim(self, grace_s: float | None) -> Answer:
        self.asked.append(("reclaim", grace_s))
        return {}

    def lend(self) -> Answer:
        self.asked.append("lend")
        return {}

    def status(self) -> Answer:
        return {"node": "n1"}


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ('{"command": "reclaim", "grace_s": 10}', ("reclaim", 10.0)),
        ('{"command": "reclaim", "grace_s": 0}', ("reclaim", 0.0)),
        ('{"command": "reclaim"}', ("reclaim", None)),
        ('{"command": "lend"}', "lend"),
    ],
)
def test_commands_are_obeyed(line: str, asked: object) -> None:
    owner = Owner()
    obey(line.encode(), owner)
    assert owner.asked == [asked]


@pytest.mark.parametrize(
    "line",
    [
        *("", "reclaim", "[]", "7", "{}", '{"command": "stop"}', '{"command": "lend", "grace_s": 1}', "\udcff"),
        *('{"command": "reclaim", "grace_s": -1}', '{"command": "reclaim", "grace_s": "10"}'),
        *('{"command": "reclaim", "grace_s": NaN}', '{"command": "reclaim", "grace": 10}'),
    ],
)
def test_anything_else_does_nothing_and_says_why(line: str) -> None:
    owner = Owner()
    with pytest.raises(BadCommand):
        obey(line.encode(errors="surrogateescape"), owner)
    assert owner.asked == []


async def test_a_line_in_a_line_out_for_this_user_only(place: Path) -> None:
    path = place / "control.sock"
    path.touch()  # left by an agent that was killed
    server = await serve(path, Owner())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"command": "status"}\nnonsense\n')
    assert json.loads(await reader.readline()) == {"ok": True, "node": "n1"}
    refused = json.loads(await reader.readline())
    assert refused["ok"] is False
    assert "not JSON" in refused["error"]
    assert "reclaim" in refused["remedy"]
    writer.close()
    server.close()


async def test_too_long_a_path_is_refused_with_the_remedy(place: Path) -> None:
    with pytest.raises(OSError, match="shorten --dir"):
        await serve(place / ("x" * 100) / "control.sock", Owner())


def test_the_owners_word_outlives_the_agent(tmp_path: Path) -> None:
    OwnersWord(tmp_path).withhold("mine now")
    word = OwnersWord(tmp_path)
    assert word.withheld == "mine now"
    word.lend()
    assert OwnersWord(tmp_path).withheld == ""


def test_a_folder_has_one_agent(tmp_path: Path) -> None:
    prepare(tmp_path / "a")
    with pytest.raises(BlockingIOError):
        prepare(tmp_path / "a")
