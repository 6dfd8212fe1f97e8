"""What /proc says of processes, exact enough to be told again after a restart. Linux only, standard library only."""

from __future__ import annotations

import os
import signal
import time


def birth(pid: int) -> str | None:
    """What, with its id, names one live process for ever: this boot of the machine, and its start in clock ticks.

    None if there is no such process, or only its corpse.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else f"{boot()}/{int(fields[19])}"


def boot() -> str:
    """The machine's present boot."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def session_members(session: int) -> list[int]:
    """Live processes of a session (those that a process started with `start_new_session` and they themselves made)."""
    return [pid for pid in _all_pids() if birth(pid) is not None and _session_of(pid) == session]


def _all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


def kill_session(session: int, wait_s: float = 10.0) -> None:
    """SIGKILL every process of a session and wait until none is left. Blocking."""
    deadline = time.monotonic() + wait_s
    while members := session_members(session):
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {members} are still there {wait_s:g} s after SIGKILL")
        time.sleep(0.02)
