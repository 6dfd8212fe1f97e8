"""This node's raylet: how it is started, and the hand that an agent has on it through its keeper."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import agents
from agents import process_tree, shared_memory
from agents.decide import JoinAsked
from agents.spare.asking import off_loop

_LONGEST_TEMP_DIR = 38
"""Ray puts unix sockets up to 68 characters below its temp dir, and their paths end at 107."""

_NEAR = "fwl"
_KEEPER = "import sys; sys.path.insert(0, sys.argv[1]); from agents import keeper; keeper.main(sys.argv[2:])"
_KEEPER_GRACE_S = 0.5
_WITHOUT_EXTRAS = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray.serve.scripts", "ray.util.state.state_cli", "ray.dashboard.modules.job.cli")))
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs Ray's command without what it imports for commands other than `start`: half of its imports, 0.4 s of a core."""
_POLL_S = 0.1
_NEVER_INHERITED = ("FALLOW_TOKEN", "FALLOW_ADDRESS", "SLURM_CPU_BIND")


class CannotStart(Exception):
    """The raylet cannot be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class RayletOptions:
    """What holds for every raylet of this agent. `ray` is the executable, empty: find it."""

    node: str
    folder: Path
    address: str = ""
    ray: str = ""
    object_store_bytes: int = 80_000_000
    cores: frozenset[int] = frozenset()  # pin to these; empty: to none
    shielded: bool = False  # from the SIGTERM that a batch system sends to every process of a job
    start_limit_s: float = 120.0


def find_ray(given: str) -> str:
    """The `ray` executable: the given one, or the one of this Python, or one on PATH. Raises CannotStart."""
    beside = Path(sys.executable).with_name("ray")
    found = shutil.which(given or str(beside)) or (None if given else shutil.which("ray"))
    if not found:
        where = given or f"beside {sys.executable} or on PATH"
        raise CannotStart(f"ray is not found ({where}): pip install 'fallow[agent]', or give --ray PATH")
    return os.path.abspath(found)


def version_problem(ray: str, wanted: str) -> str:
    """Why the Ray that belongs to the executable cannot join a cluster of version `wanted`; empty if it can."""
    library = Path(ray).resolve().parent.parent / "lib"
    found = [path.name[4:-10] for path in library.glob("python3*/site-packages/ray-*.dist-info")]
    if not wanted or not found or wanted in found:
        return ""
    return f"the site runs Ray {wanted}, this node has Ray {found[0]}: pip install ray=={wanted}"


def temp_dir(folder: Path, epoch: int) -> Path:
    """The lease's own folder: under the agent's where that is short enough, else under the system's temp dir."""
    near = folder / f"{_NEAR}{epoch}"
    return near if len(str(near)) <= _LONGEST_TEMP_DIR else Path(f"{_far_prefix(folder)}{epoch}")


def _far_prefix(folder: Path) -> str:
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return str(Path(tempfile.gettempdir()) / f"fw-{digest}-")


def lease_folders(folder: Path) -> tuple[str, str]:
    """What the paths of all lease folders of this agent begin with."""
    return f"{folder}/{_NEAR}", _far_prefix(folder)


def command(options: RayletOptions, ray: str, join: JoinAsked, devices: int, temp: Path) -> list[str]:
    """The command line of the raylet."""
    label = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', options.node)}_{join.epoch}"
    local = options.address in ("", "localhost") or options.address.startswith("127.")
    return [
        *_quickly(ray),
        "start",
        f"--address={join.ray_address}",
        "--block",
        f"--num-cpus={devices}",
        "--num-gpus=0",
        f"--labels=fallow-lease={label}",
        f"--object-store-memory={options.object_store_bytes}",
        f"--temp-dir={temp}",
        "--disable-usage-stats",
        "--include-log-monitor=false",
        "--log-style=record",
        *([] if local else [f"--node-ip-address={options.address}"]),
    ]


def _quickly(ray: str) -> list[str]:
    """How to run the executable: by the Python that its first line names; as it is if that names none."""
    with open(ray, "rb") as file:
        first = file.readline(300).decode(errors="replace").split()
    python = [first[0].removeprefix("#!"), *first[1:]] if first and first[0].startswith("#!/") else []
    is_python = bool(python) and Path(python[0]).name.startswith("python")
    return [*python, "-c", _WITHOUT_EXTRAS, ray] if is_python else [ray]


def environment(
    base: Mapping[str, str], options: RayletOptions, join: JoinAsked, devices: tuple[str, ...]
) -> dict[str, str]:
    """The raylet's environment: the agent's own without its secrets and Ray settings, and with the lease's marks."""
    kept = {k: v for k, v in base.items() if k not in _NEVER_INHERITED and not k.startswith("RAY_")}
    gpus = [d.partition(":")[2] for d in devices if d.startswith("nvidia:")]
    return kept | {
        "FALLOW_LEASE": f"{options.node}/{join.epoch}",
        process_tree.MARK: str(options.folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": join.ray_token,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # actors take devices by id, not by Ray's count
        **({"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}),
    }


class KeptRaylet:
    """A raylet and its keeper.

    `on_ended(last words)` is called if the raylet ends by itself, `on_gone(killed)` exactly once, when no process of
    the lease is left - also where the keeper was killed, for then this object clears up in its place.
    """

    def __init__(
        self, options: RayletOptions, temp: Path, on_ended: Callable[[str], None], on_gone: Callable[[int], None]
    ) -> None:
        self.options, self.temp = options, temp
        self.log = options.folder / "raylet.log"
        self._on_ended, self._on_gone = on_ended, on_gone
        self._process: subprocess.Popen[bytes] | None = None
        self._task: asyncio.Task[None] | None = None
        self._impatience: asyncio.TimerHandle | None = None

    @property
    def keeper(self) -> int:
        """The keeper's process id, 0 before the start."""
        return self._process.pid if self._process else 0

    def start(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Start both. Raises CannotStart."""
        cores = ",".join(str(core) for core in sorted(self.options.cores)) or "-"
        shield = "shielded" if self.options.shielded else "-"
        try:
            self.temp.mkdir(mode=0o700)
            with self.log.open("wb") as output:
                self._process = subprocess.Popen(
                    [*_keeper_command(), str(self.temp), str(self.log), cores, shield, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env=dict(environment),
                    start_new_session=True,
                    bufsize=0,
                )
        except OSError as error:
            raise CannotStart(f"cannot start a raylet under {self.options.folder}: {error}") from error
        self._task = asyncio.create_task(self._follow())

    def end(self, term_at: float, kill_at: float) -> None:
        """SIGTERM to all at the first time, SIGKILL at the second, or earlier if that was said before."""
        self._tell(f"end {term_at} {kill_at}")
        loop = asyncio.get_running_loop()
        when = loop.time() + kill_at - time.monotonic() + _KEEPER_GRACE_S
        if self._impatience is None or when < self._impatience.when():
            if self._impatience:
                self._impatience.cancel()
            self._impatience = loop.call_at(when, self._replace_keeper)

    def limit(self, term_at: float, kill_at: float) -> None:
        """Set the times that hold if the agent says nothing more; they may be later than those before."""
        self._tell(f"extend {term_at} {kill_at}")

    async def started(self) -> bool:
        """Wait until the raylet listens; False if it does not in time."""
        until = time.monotonic() + self.options.start_limit_s
        while time.monotonic() < until:
            if any(self.temp.glob("session_*/sockets/raylet")):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def last_words(self) -> str:
        """The end of what the raylet printed."""
        try:
            text = self.log.read_bytes()[-4000:].decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-5:])[-800:]

    def _tell(self, line: str) -> None:
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError):  # its end is noticed on the other pipe
                self._process.stdin.write(line.encode() + b"\n")

    def _replace_keeper(self) -> None:
        if self._process and self._process.poll() is None:
            self._process.kill()

    async def _follow(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), self._process.stdout)
        killed: int | None = None
        while line := (await reader.readline()).split():
            if line[0] == b"exited":
                self._on_ended(f"the raylet ended with status {line[1].decode()}: {self.last_words()}")
            elif line[0] == b"gone":
                killed = int(line[1])
        transport.close()
        await off_loop(self._process.wait)
        if self._process.stdin:
            self._process.stdin.close()
        if self._impatience:
            self._impatience.cancel()
        self._on_gone(killed if killed is not None else await off_loop(self._clear))

    def _clear(self) -> int:
        return clear(self.options.folder, process_tree.started(os.getpid()))


def _keeper_command() -> list[str]:
    """Without site-packages: the keeper needs none, and stays small."""
    return [sys.executable, "-S", "-E", "-c", _KEEPER, str(Path(agents.__file__).resolve().parent.parent)]


def clear(folder: Path, since: int = 0) -> int:
    """Kill every process of every lease of this agent, and remove what they left. Blocks; how many were killed.

    For when a keeper was killed, and at the start, after an agent that was killed together with its keeper. Processes
    that started before `since` (clock ticks since boot) are known to be none of them.
    """
    me = os.getpid()
    mark = f"{process_tree.MARK}={folder}".encode()
    killed: set[tuple[int, int]] = set()
    shared: set[str] = set()
    empty_looks = 0
    while empty_looks < 2:
        left = process_tree.belonging(me, mark, lease_folders(folder), since)
        shared |= shared_memory.mapped_by(process.pid for process in left)
        for process in left:
            killed.add((process.pid, process.started))
            process_tree.send(process, signal.SIGKILL)
        process_tree.reap()
        empty_looks = 0 if left else empty_looks + 1
        time.sleep(0.01)
    left_behind = _folders(folder)
    if left_behind:
        shared_memory.remove(shared, min(path.stat().st_ctime for path in left_behind))
    for path in left_behind:
        shutil.rmtree(path, ignore_errors=True)
    return len(killed)


def _folders(folder: Path) -> list[Path]:
    """Lease folders of this agent that are still there."""
    return [
        path
        for prefix in map(Path, lease_folders(folder))
        for path in prefix.parent.glob(f"{prefix.name}*")
        if path.name[len(prefix.name) :].isdigit() and path.is_dir() and path.stat().st_uid == os.getuid()
    ]
