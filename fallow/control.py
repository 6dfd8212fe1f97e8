"""The owner's word to an agent, over the unix socket in the agent's folder: it needs no scheduler."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from fallow.errors import FallowError, Unreachable


def say(agent_dir: Path, message: dict[str, Any], timeout_s: float = 10.0) -> dict[str, Any]:
    """Send one command and return the agent's answer. Raises `Unreachable`, or `FallowError` with its refusal."""
    path = agent_dir / "control.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(message).encode() + b"\n")
            with connection.makefile("rb") as lines:
                answer = json.loads(lines.readline())
        except (OSError, ValueError) as error:
            raise Unreachable(
                f"No agent answers at {path} ({error}).", "Give the agent's --dir, on the machine that it runs on."
            ) from error
    if answer.get("error"):
        raise FallowError(str(answer["error"]), str(answer.get("remedy", "")))
    return dict(answer)
