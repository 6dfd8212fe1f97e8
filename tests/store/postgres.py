"""A real PostgreSQL in a temporary folder, for as long as a test run needs it."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg


class Postgres:
    """A running server that only this machine's unix socket leads to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new_database(self) -> str:
        """URL of a fresh, empty database."""
        name = f"fallow_{uuid.uuid4().hex}"
        with psycopg.connect(host=str(self.folder), user="fallow", dbname="postgres", autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://fallow@/{name}?host={self.folder}"


def missing() -> str:
    """Why no server can be started here; empty if one can."""
    if _binaries() is None:
        return "no PostgreSQL server is installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and _owner() is None:
        return "PostgreSQL refuses root, and there is no user to run it as"
    return ""


@contextmanager
def running() -> Iterator[Postgres]:
    """Start a server; stop it and remove its files in the end."""
    binaries, owner = _binaries(), _owner()
    assert binaries is not None
    folder = Path(tempfile.mkdtemp(prefix="fw-pg-", dir="/tmp"))  # a unix socket's path must be short
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    ctl = [binaries / "pg_ctl", "-D", folder / "data", "-w", "-s"]
    try:
        _as(owner, [binaries / "initdb", "-D", folder / "data", "-A", "trust", "-U", "fallow", "-N"])
        options = f"-c listen_addresses='' -c fsync=off -k {folder}"
        _as(owner, [*ctl, "-t", "120", "-o", options, "-l", folder / "log", "start"])
        yield Postgres(folder)
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            _as(owner, [*ctl, "-m", "immediate", "stop"])
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path | None:
    on_path = shutil.which("pg_ctl")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))
    if found:
        return Path(found[-1]).parent
    return Path(on_path).resolve().parent if on_path else None


def _owner() -> pwd.struct_passwd | None:
    """Whom to run it as when we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return None


def _as(owner: pwd.struct_passwd | None, command: list[str | Path]) -> None:
    identity = {} if owner is None else {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=180, **identity)
