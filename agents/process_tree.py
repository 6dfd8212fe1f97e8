"""Which processes of this machine belong to a lease, read from /proc. Standard library only: the keeper runs on it.

A process belongs to a lease if it descends from the lease's keeper, if its environment carries the mark of the
agent's folder, or if it has a file under the lease's folder open for writing. The last two find what escaped: a
process that lost its parent, or one that wrote over its own environment (as Ray's agents do when they take a name).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import NamedTuple

MARK = "FALLOW_AGENT_DIR"
"""Environment variable that names the agent's folder, whose lock makes it unique on the machine."""

_DEAD = "ZX"


class Process(NamedTuple):
    """One process. `started` (clock ticks since boot) tells it from a later one of the same id."""

    pid: int
    parent: int
    state: str
    started: int


def read(pid: int) -> Process | None:
    """The process as /proc shows it now, None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return Process(pid, int(fields[1]), fields[0].decode(), int(fields[19]))


def table() -> dict[int, Process]:
    """Every process of the machine by id."""
    found = (read(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process}


def descendants(root: int, processes: dict[int, Process]) -> set[int]:
    """Ids of all processes below `root`, dead ones included, `root` itself not."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    ahead = [root]
    while ahead:
        below = [pid for pid in children.get(ahead.pop(), ()) if pid not in found]
        found.update(below)
        ahead.extend(below)
    return found


def is_marked(pid: int, mark: bytes, folders: tuple[str, ...]) -> bool:
    """Whether the environment carries `mark` (NAME=value), or a file is open for writing whose path begins with one
    of `folders`. Who only reads there, such as an owner who looks at a log, is none of ours."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if mark in file.read().split(b"\0"):
                return True
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return False  # gone, or of a user whose processes are none of ours
    return any(_writes(pid, number, folders) for number in numbers)


def _writes(pid: int, number: str, folders: tuple[str, ...]) -> bool:
    try:
        if not os.readlink(f"/proc/{pid}/fd/{number}").startswith(folders):
            return False
        with open(f"/proc/{pid}/fdinfo/{number}", "rb") as file:
            flags = next(line for line in file if line.startswith(b"flags:"))
    except (OSError, StopIteration):
        return False
    return int(flags.split()[1], 8) & (os.O_WRONLY | os.O_RDWR) != 0


def belonging(root: int, mark: bytes, folders: tuple[str, ...], since: int = 0) -> list[Process]:
    """Live processes below `root`, and marked ones of the same user anywhere, but not `root` itself.

    Processes that started before `since` (clock ticks since boot) cannot be marked, and are not looked into: on a
    full machine that is most of the work, and a deadline waits for it.
    """
    processes = table()
    ours = descendants(root, processes)
    return [
        process
        for process in processes.values()
        if process.pid != root
        and process.state not in _DEAD
        and (process.pid in ours or (process.started >= since and is_marked(process.pid, mark, folders)))
    ]


def started(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 if there is none."""
    found = read(pid)
    return found.started if found else 0


def send(process: Process, number: int) -> None:
    """Signal exactly this process: never another one that got its id meanwhile."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # kernels before 5.3
        _kill(process, number)
        return
    try:
        now = read(process.pid)
        if now and now.started == process.started:
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)


def _kill(process: Process, number: int) -> None:
    now = read(process.pid)
    if now and now.started == process.started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def reap() -> None:
    """Bury this process's own dead children, those that it adopted too."""
    me = os.getpid()
    for process in table().values():
        if process.parent == me and process.state in _DEAD:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose own parent dies. False where the kernel cannot (before 3.4)."""
    return _prctl(36, 1)


def die_with_parent() -> bool:
    """Have the kernel SIGKILL this process when its parent dies."""
    return _prctl(1, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    import ctypes

    return bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)
