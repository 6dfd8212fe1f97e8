"""The keeper: a small process between an agent and its raylet that makes sure of law 1.

It starts the raylet, becomes the parent of everything that the raylet leaves behind, and kills all of it when told
to, at the deadline, or when the agent is gone - even by SIGKILL, for then the pipe on its standard input ends. It
needs nothing but the standard library, and runs without site-packages so that it stays near 10 MB.

Lines in (times are seconds of CLOCK_MONOTONIC, which all processes of a machine share):
    end TERM_AT KILL_AT    SIGTERM at the first time, SIGKILL at the second; never later than said before
    extend TERM_AT KILL_AT the same, but may be later than said before
Lines out:
    exited CODE            the raylet ended by itself
    gone KILLED            nothing is left; so many processes had to be killed with SIGKILL

A shielded keeper starts the raylet with SIGTERM blocked, which all that comes of it inherits, and says SIGHUP where
others say SIGTERM: a batch system sends its SIGTERM to every process of a job step, and at that moment the work has
still to be moved away.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

from agents import process_tree, shared_memory

_LAST_WORDS_S = 1.0
"""How long processes have to end by themselves when the raylet or the agent is gone without a word."""


class Keeper:
    """Keeps one raylet. Invariant: once `ending`, it runs until two looks in a row find no process of the lease."""

    def __init__(self, mark: bytes, folder: str, log: str, shielded: bool) -> None:
        self.mark, self.folder, self.log, self.shielded = mark, folder, log, shielded
        self.me = os.getpid()
        self.since, self.since_s = process_tree.started(self.me), os.stat(folder).st_ctime
        self.root = 0
        self.term_at = self.kill_at = float("inf")
        self.ending = False
        self.killed: set[tuple[int, int]] = set()
        self.shared: set[str] = set()
        self.unread = b""
        self.agent_gone = False

    def start(self, command: list[str], cores: set[int]) -> None:
        """Start the raylet in a session of its own; it dies with the keeper."""
        self.root = os.fork()
        if self.root:
            return
        try:
            _become(command, cores, self.log, self.shielded)
        finally:
            os._exit(127)

    def run(self, wake: int) -> None:
        """Keep until nothing of the lease is left. `wake` becomes readable when a child ends."""
        empty_looks = 0
        while empty_looks < 2:
            self._reap()
            now = time.monotonic()
            if now >= self.term_at or now >= self.kill_at:
                empty_looks = empty_looks + 1 if self._end(now) else 0
            if empty_looks < 2:
                self._wait(wake, self._pause_s(now))

    def _end(self, now: float) -> bool:
        """One round of ending; whether nothing was left."""
        left = process_tree.belonging(self.me, self.mark, (f"{self.folder}/",), self.since)
        if now >= self.kill_at or not self.ending:
            self.shared |= shared_memory.mapped_by(process.pid for process in left)
        if now >= self.kill_at:
            for process in left:
                self.killed.add((process.pid, process.started))
                process_tree.send(process, signal.SIGKILL)
        elif not self.ending:
            for process in left:
                process_tree.send(process, signal.SIGHUP if self.shielded else signal.SIGTERM)
        self.ending = True
        return not left

    def _pause_s(self, now: float) -> float:
        if now >= self.kill_at:
            return 0.01
        if self.ending:
            return min(0.05, self.kill_at - now)
        return min(60.0, min(self.term_at, self.kill_at) - now)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self.root and not self.ending:
                self._say(f"exited {os.waitstatus_to_exitcode(status)}")
                self._last_words()

    def _last_words(self) -> None:
        now = time.monotonic()
        self.term_at, self.kill_at = min(self.term_at, now), min(self.kill_at, now + _LAST_WORDS_S)

    def _wait(self, wake: int, seconds: float) -> None:
        sources = [wake] if self.agent_gone else [wake, 0]
        readable = select.select(sources, [], [], max(0.0, seconds))[0]
        if wake in readable:
            os.read(wake, 4096)
        if 0 in readable:
            self._listen()

    def _listen(self) -> None:
        chunk = os.read(0, 4096)
        if not chunk:
            self.agent_gone = True
            self._last_words()
            return
        *lines, self.unread = (self.unread + chunk).split(b"\n")
        for line in lines:
            self._obey(line.split())

    def _obey(self, words: list[bytes]) -> None:
        if len(words) == 3 and words[0] in (b"end", b"extend"):
            term_at, kill_at = float(words[1]), float(words[2])
            if words[0] == b"end" or self.ending:
                term_at, kill_at = min(self.term_at, term_at), min(self.kill_at, kill_at)
            self.term_at, self.kill_at = term_at, kill_at

    def _say(self, line: str) -> None:
        try:
            os.write(1, line.encode() + b"\n")
        except OSError:
            self.agent_gone = True

    def leave(self) -> None:
        """Remove what the raylet left on disk and in shared memory, then say that nothing is left."""
        shared_memory.remove(self.shared, self.since_s)
        _remove(self.folder)
        self._say(f"gone {len(self.killed)}")


def _remove(folder: str) -> None:
    """Remove a folder as far as that goes; `shutil` would have to be loaded first, and the owner waits."""
    for path, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            there = os.path.join(path, name)
            try:
                os.rmdir(there) if os.path.isdir(there) and not os.path.islink(there) else os.unlink(there)
            except OSError:
                continue
    try:
        os.rmdir(folder)
    except OSError:
        return


def _become(command: list[str], cores: set[int], log: str, shielded: bool) -> None:
    os.setsid()
    process_tree.die_with_parent()
    if shielded:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    if cores:
        os.sched_setaffinity(0, cores)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.execve(command[0], command, os.environ)


def main(arguments: list[str]) -> None:
    """Keep the raylet that `arguments` describe: FOLDER LOG CORES SHIELD COMMAND...

    CORES: "0,1", or "-" for all. SHIELD: "shielded", or "-".
    """
    folder, log, cores, shield, *command = arguments
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)  # only the agent, its end or the deadline may end a keeper
    process_tree.adopt_orphans()
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    mark = f"{process_tree.MARK}={os.environ[process_tree.MARK]}".encode()
    keeper = Keeper(mark, folder, log, shield == "shielded")
    keeper.start(command, set() if cores == "-" else {int(core) for core in cores.split(",")})
    keeper.run(wake)
    keeper.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
