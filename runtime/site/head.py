"""The site's Ray head: a process of its own session that outlives this one, found again through `head.json`.

Ray listens on every interface whatever address it is given, so authentication is always on, with a token of the
site's own that is passed explicitly: a token file that an earlier `ray.init` left in the home directory is not used.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path

from runtime.site.files import write_whole
from runtime.site.processes import birth, boot, kill_session

log = logging.getLogger(__name__)

START_LIMIT_S = 120.0
"""A head that does not answer by then has failed. It takes 3 to 8 s on two cores."""

SPARE_TRIES = 2
"""A port that was free may be taken before the head has bound it: then another one is tried."""

MAX_TEMP_DIR = 40
"""Longest temporary folder, in bytes: Ray's Unix sockets lie below it, and their paths end at 107 bytes."""

OBJECT_STORE_BYTES = 80_000_000
"""Ray refuses less than 75 MiB; tensors do not go through it."""

HEAD_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # A raylet that died without a word is noticed in 1.5 s, not 14; one that only answers late is left its 10 s.
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
    # Every lease is a new Ray node; what Ray remembers of dead ones must not grow without end.
    "RAY_maximum_gcs_dead_node_cached_count": "200",
    # Of a machine that is nearly full Ray ends workers, idle or not. On the head that would be the endpoints, which are
    # small and carry every stream. Raylets of lent nodes go on doing so: there memory is the owner's.
    "RAY_memory_monitor_refresh_ms": "0",
}

CLUSTER_SETTINGS = {
    # A raylet whose head died has nobody to belong to: it ends after 10 s, not 60, and its node can join the next head.
    "gcs_rpc_server_reconnect_timeout_s": 10,
    # A new node's processes start, and import what takes longest, while its first assignment is still being made:
    # an actor then starts in 0.2 to 0.6 s where it took 5 to 10 (two busy cores).
    "enable_worker_prestart": True,
    "preload_python_modules": ["runtime.preloaded"],
}
"""What the head passes on to every raylet and worker of its cluster."""


class HeadFailed(Exception):
    """The Ray head could not be started; the message says why and what to do."""


class EndedAtOnce(HeadFailed):
    """It ended while it started: its port was taken in between, mostly."""


@dataclass(frozen=True, slots=True)
class Head:
    """A running head: where raylets reach it, and what names its process."""

    address: str  # HOST:PORT
    token: str = field(repr=False)
    pid: int
    born: str  # with the process id, names the process: see `processes.birth`
    temp_dir: str
    ray_version: str

    @property
    def port(self) -> int:
        """Port of Ray's control store."""
        return int(self.address.rpartition(":")[2])


class RayHead:
    """Starts the head or finds it again. Blocking; call from a thread."""

    def __init__(self, folder: Path, address: str, port: int = 0) -> None:
        self._file = folder / "head.json"
        self._log = folder / "head.log"
        self._address = address
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.was_found = False

    def start(self) -> Head:
        """The head that already runs, else a new one. Raises `HeadFailed`."""
        known = self.read()
        if known and self.is_alive(known):
            log.info("found the Ray head again: %s, process %d", known.address, known.pid)
            self.was_found = True
            return self._moved(known)
        if known:
            log.warning("the Ray head (process %d) has died: starting another", known.pid)
            self._clear(known)
        for _ in range(0 if self._port else SPARE_TRIES):
            try:
                return self._start()
            except EndedAtOnce as error:
                log.warning("%s\ntrying again on another port", error)
        return self._start()

    def is_alive(self, head: Head) -> bool:
        """Whether exactly this head still runs."""
        if self._process is not None and self._process.pid == head.pid:
            self._process.poll()  # reaps it, so that a dead head is no zombie
        return birth(head.pid) == head.born

    def stop(self, head: Head) -> None:
        """Kill the head with everything it started and remove its files."""
        self._clear(head)
        self._file.unlink(missing_ok=True)

    def _clear(self, head: Head) -> None:
        # The session is still the head's if its leader is the head, or dead: such a number is not given out again.
        if birth(head.pid) in (head.born, None) and head.born.startswith(boot()):
            kill_session(head.pid)
        if self._process is not None:
            self._process.wait()
        shutil.rmtree(head.temp_dir, ignore_errors=True)

    def read(self) -> Head | None:
        """The head that `head.json` names, alive or not. Raises `HeadFailed` if the file is spoiled."""
        try:
            return Head(**json.loads(self._file.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise HeadFailed(f"{self._file} cannot be read ({error}): stop its Ray head and remove the file") from error

    def _moved(self, head: Head) -> Head:
        """The head as it is reached now: `--address` may have changed since it was started."""
        if self._port and head.port != self._port:
            raise HeadFailed(
                f"the Ray head of this folder runs on port {head.port}, not {self._port}: "
                f"leave --ray-port out, or stop process {head.pid} first"
            )
        moved = replace(head, address=f"{self._address}:{head.port}")
        write_whole(self._file, json.dumps(asdict(moved)), 0o600)
        return moved

    def _start(self) -> Head:
        version = ray_version()
        port, temp_dir = self._choose_port(), make_temp_dir()
        token = secrets.token_hex(32)  # a new one each time: so everyone sees that it is a new cluster
        process = self._spawn(port, token, temp_dir)
        self._process = process
        born = birth(process.pid) or ""
        head = Head(f"{self._address}:{port}", token, process.pid, born, temp_dir, version)
        write_whole(self._file, json.dumps(asdict(head)), 0o600)
        try:
            self._wait(head)
        except HeadFailed:
            self.stop(head)
            raise
        log.info("started the Ray head: %s, process %d", head.address, head.pid)
        return head

    def _choose_port(self) -> int:
        if self._port and not is_free(self._port):
            raise HeadFailed(f"port {self._port} is in use: give another --ray-port, or leave it out for any free one")
        return self._port or free_port()

    def _spawn(self, port: int, token: str, temp_dir: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += ["--num-cpus=0", "--include-dashboard=false", "--include-log-monitor=false", "--no-monitor"]
        command += ["--disable-usage-stats", "--log-style=record", f"--temp-dir={temp_dir}"]
        command += [f"--object-store-memory={OBJECT_STORE_BYTES}", f"--system-config={json.dumps(CLUSTER_SETTINGS)}"]
        with self._log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**without_ray_settings(), **HEAD_SETTINGS, **auth_settings(token)},
            )

    def _wait(self, head: Head) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        while not answers(head):
            if not self.is_alive(head):
                raise EndedAtOnce(f"the Ray head ended while it started; its last words:\n{self._last_words()}")
            if time.monotonic() > deadline:
                raise HeadFailed(f"the Ray head did not answer within {START_LIMIT_S:g} s; see {self._log}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])


def ray_version() -> str:
    """The installed Ray's version, read without importing Ray. Raises `HeadFailed` if there is none."""
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        raise HeadFailed(f"Ray is not installed for {sys.executable}: run `pip install 'fallow[runtime]'`") from None


def make_temp_dir() -> str:
    """A new folder for Ray's sockets and logs, with a path short enough for them. Raises `HeadFailed`."""
    base = tempfile.gettempdir()
    if len(base.encode()) + len("/fallow-12345678") > MAX_TEMP_DIR:
        raise HeadFailed(
            f"the temporary folder {base} has too long a path for Ray's sockets: set TMPDIR to a short one"
        )
    return tempfile.mkdtemp(prefix="fallow-", dir=base)


def auth_settings(token: str) -> dict[str, str]:
    """Environment that makes a Ray process demand and present the token."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def without_ray_settings() -> dict[str, str]:
    """This process's environment without what other Ray clusters may have left in it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def is_free(port: int) -> bool:
    """Whether a listener can take the port on every interface."""
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("", port))
        return True
    return False


def free_port() -> int:
    """A port that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def answers(head: Head) -> bool:
    """Whether the control store knows a live raylet beside it, which a driver needs."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.1", head.port)) != 0:
            return False
    return bool(list(Path(head.temp_dir).glob("session_*/sockets/raylet*")))
