"""A PostgreSQL server of a test's own, on loopback, as a user that is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "fallow-test"


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _binaries() -> Path:
    on_path = shutil.which("initdb")
    found = [Path(on_path).resolve().parent] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("PostgreSQL's server is not installed")
    return found[-1]


def _owner() -> dict[str, int]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam("postgres")
    except KeyError:
        user = pwd.getpwnam("nobody")
    return {"user": user.pw_uid, "group": user.pw_gid}


@contextmanager
def postgres() -> Iterator[int]:
    """A server with a user `fallow`, its password, and a database of that name; gives its port."""
    binaries, owner, port = _binaries(), _owner(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="fw-pg-"))
    (folder / "password").write_text(PASSWORD)
    if owner:
        for path in (folder, folder / "password"):
            os.chown(path, owner["user"], owner["group"])
    data = folder / "data"
    calls = {"check": True, "capture_output": True, "cwd": folder, **owner}
    initdb = [binaries / "initdb", "-D", data, "-U", "fallow", "-A", "scram-sha-256", "--pwfile", folder / "password"]
    subprocess.run([*initdb, "--no-sync", "--encoding=UTF8", "--locale=C"], **calls)
    server = [binaries / "postgres", "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*server, "-c", "fsync=off"], stdout=log, stderr=log, cwd=folder, **owner)
    try:
        client = {**os.environ, "PGPASSWORD": PASSWORD}
        where = ["-h", "127.0.0.1", "-p", str(port), "-U", "fallow"]
        ready = ["bash", "-c", 'until "$0" -q "$@"; do sleep 0.1; done', binaries / "pg_isready", *where]
        subprocess.run([*ready, "-d", "postgres"], check=True, timeout=60)
        subprocess.run([binaries / "createdb", *where, "fallow"], check=True, env=client)
        yield port
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
