"""Stands in for the `ray` executable: a process tree that behaves as badly as FAKE_RAY says.

Words: "stubborn" ignores SIGTERM; "crash" ends at once; "stray" leaves a process of a session of its own whose parent
is gone; "scrubbed" the same without its environment; "shared" maps a file in /dev/shm; "spawning" forks a new process
whenever one is killed.
"""

import mmap
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    words = os.environ.get("FAKE_RAY", "").split()
    options = dict(a[2:].split("=", 1) for a in sys.argv[2:] if a.startswith("--") and "=" in a)
    if "crash" in words:
        print("the head at", options["address"], "does not answer")
        sys.exit(3)
    sockets = Path(options["temp-dir"]) / "session_1" / "sockets"
    sockets.mkdir(parents=True)
    if "stubborn" in words:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper()
    if "stray" in words:
        stray(dict(os.environ))
    if "scrubbed" in words:
        stray({"PATH": os.environ["PATH"]})
    shared = share() if "shared" in words else None  # noqa: F841 (kept mapped)
    note = Path(os.environ["FAKE_RAY_NOTES"]) if "FAKE_RAY_NOTES" in os.environ else None
    if note:
        note.joinpath(os.environ["FALLOW_LEASE"].replace("/", "_")).write_text("\n".join(sys.argv[1:]))
    (sockets / "raylet").touch()
    while True:
        time.sleep(60) if "spawning" not in words else respawn()


def share() -> mmap.mmap:
    with open("/dev/shm/" + Path(os.environ["FAKE_RAY_NOTES"]).name, "wb+") as file:
        file.truncate(4096)
        return mmap.mmap(file.fileno(), 4096)


def sleeper() -> int:
    pid = os.fork()
    if pid:
        return pid
    while True:
        time.sleep(60)


def respawn() -> None:
    os.waitpid(sleeper(), 0)


def stray(environment: dict[str, str]) -> None:
    if os.fork():
        os.wait()
        return
    os.setsid()
    if not os.fork():
        os.execve(sys.executable, [sys.executable, "-c", "import time\nwhile True: time.sleep(60)"], environment)
    os._exit(0)


if __name__ == "__main__":
    main()
