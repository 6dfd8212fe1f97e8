"""OS processes of a local cluster: started with a marker in their environment, found and ended by it.

Everything that a process of ours starts inherits the marker, so that no stray is missed and nobody else's process is
ever touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from fallow.errors import FallowError

CLUSTER_VARIABLE = "FALLOW_CLUSTER"
"""Set to the cluster's id in every process of a local cluster."""

PART_VARIABLE = "FALLOW_PART"
"""Set to the part's name ("scheduler", "site", a node) in every process of that part."""

LEASE_VARIABLE = "FALLOW_LEASE"
"""Set by agents, to NODE/EPOCH, in everything that they start."""

_NOT_INHERITED = ("FALLOW_ADDRESS", "FALLOW_TOKEN", "FALLOW_TLS_CA")
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Part:
    """One process of a cluster: what it is called, how it is started, where it says that it is ready."""

    name: str
    arguments: tuple[str, ...]  # of this Python
    log: Path
    ready_file: Path
    pid_file: Path


def start(part: Part, environment: Mapping[str, str]) -> int:
    """Start the part in a session of its own; its output goes to its log, its pid to its pid file."""
    part.log.parent.mkdir(parents=True, exist_ok=True)
    part.ready_file.parent.mkdir(parents=True, exist_ok=True)
    part.ready_file.unlink(missing_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    with part.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *part.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**inherited, **environment, PART_VARIABLE: part.name},
            start_new_session=True,
        )
    _CHILDREN[process.pid] = process
    started_s = psutil.Process(process.pid).create_time()
    part.pid_file.write_text(json.dumps({"pid": process.pid, "started_s": started_s}))
    return process.pid


@contextlib.contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Within it SIGTERM, which batch systems and `timeout` send, ends this process as `sys.exit` does: what it started
    is cleared up, and no second SIGTERM disturbs that. For the main thread."""

    def leave(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_CHILDREN: dict[int, subprocess.Popen[bytes]] = {}
"""Processes that this very process started: they must be reaped here, or they stay as zombies."""


def pid_of(part: Part) -> int | None:
    """The part's process if it lives. A recycled pid is told by its start time."""
    try:
        noted = json.loads(part.pid_file.read_text())
        process = psutil.Process(noted["pid"])
        same = abs(process.create_time() - noted["started_s"]) < 1.0
    except (OSError, ValueError, KeyError, psutil.Error):
        return None
    return process.pid if same and is_alive(process.pid) else None


def is_alive(pid: int) -> bool:
    """Whether the process still runs; one that has ended is reaped."""
    if (child := _CHILDREN.get(pid)) is not None and child.poll() is not None:
        _CHILDREN.pop(pid, None)
        return False
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def await_ready(part: Part, timeout_s: float) -> dict[str, Any]:
    """What the part wrote to its ready file. Raises `FallowError` with its last log lines when it dies first."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, ValueError):
            ready: dict[str, Any] = json.loads(part.ready_file.read_text() or "{}")
            return ready
        if pid_of(part) is None:
            raise FallowError(f"{part.name} ended while it was starting:\n{_last_lines(part.log)}", _see(part))
        time.sleep(_POLL_S)
    raise FallowError(f"{part.name} is not ready after {timeout_s:g} s:\n{_last_lines(part.log)}", _see(part))


def belonging(variable: str, accept: Callable[[str], bool], folders: tuple[str, ...] = ()) -> list[int]:
    """Pids of live processes whose environment has the variable with an accepted value, or whose output goes below
    one of the folders (Ray's workers write over their environment), and of all their descendants; never our own."""
    prefix = variable.encode() + b"="
    parents = {pid: parent for pid in _pids() if (parent := _parent(pid)) is not None}
    found = {pid for pid in parents if _is_marked(pid, prefix, accept) or _writes_below(pid, folders)}
    found.discard(os.getpid())
    ahead = list(found)
    while ahead:
        above = ahead.pop()
        below = {pid for pid, parent in parents.items() if parent == above} - found - {os.getpid()}
        found |= below
        ahead.extend(below)
    return sorted(pid for pid in found if is_alive(pid))


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _parent(pid: int) -> int | None:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return None


def _is_marked(pid: int, prefix: bytes, accept: Callable[[str], bool]) -> bool:
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(v.startswith(prefix) and accept(v[len(prefix) :].decode(errors="replace")) for v in variables)
    return False


def _writes_below(pid: int, folders: tuple[str, ...]) -> bool:
    for number in (1, 2):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/fd/{number}").startswith(folders):
                return True
    return False


def signal_all(pids: Iterable[int], number: int) -> None:
    """Send a signal to every one of them that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def await_end(pids: Iterable[int], timeout_s: float) -> bool:
    """Whether all of them ended in time."""
    deadline_s, left = time.monotonic() + timeout_s, list(pids)
    while left := [pid for pid in left if is_alive(pid)]:
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True


def _last_lines(log: Path, count: int = 12) -> str:
    with contextlib.suppress(OSError):
        return "\n".join("  " + line for line in log.read_text(errors="replace").splitlines()[-count:])
    return ""


def _see(part: Part) -> str:
    return f"Read {part.log}."
