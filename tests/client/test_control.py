from __future__ import annotations

import json
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.cli.app import run
from fallow.control import say
from fallow.errors import FallowError, Unreachable


@pytest.fixture
def agent() -> Iterator[tuple[Path, list[dict[str, object]]]]:
    """A node's folder with a socket that answers, and the commands that it heard."""
    heard: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory(prefix="fw-") as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/control.sock")
        listener.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, connection.makefile("rwb") as lines:
                    heard.append(json.loads(lines.readline()))
                    bad = heard[-1].get("grace_s") == 99
                    lines.write(json.dumps({"error": "no"} if bad else {"ok": True}).encode() + b"\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield Path(folder), heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_reclaim_needs_no_scheduler(
    agent: tuple[Path, list[dict[str, object]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, heard = agent
    monkeypatch.setattr(sys, "argv", ["fallow", "reclaim", "n1", "--grace-s", "3", "--dir", str(folder)])
    assert run() == 0
    monkeypatch.setattr(sys, "argv", ["fallow", "lend", "n1", "--dir", str(folder), "--json"])
    assert run() == 0
    assert heard == [{"command": "reclaim", "grace_s": 3.0}, {"command": "lend"}]


def test_a_refusal_of_the_agent(agent: tuple[Path, list[dict[str, object]]]) -> None:
    with pytest.raises(FallowError, match="no"):
        say(agent[0], {"command": "reclaim", "grace_s": 99})


def test_no_agent(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"control\.sock"):
        say(tmp_path, {"command": "lend"})
