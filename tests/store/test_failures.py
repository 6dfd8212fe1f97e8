"""What goes wrong with a database is said in words, with what to do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from scheduler.domain.changes import Changes
from scheduler.domain.reasons import Refused
from scheduler.store.database import Database
from scheduler.store.failures import StoreFailed
from scheduler.store.migrate import upgrade
from scheduler.store.sql_store import SqlStore
from tests.store.test_sql_store import JOB, row


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fallow.db"


def failure(action: Callable[[], object]) -> StoreFailed:
    with pytest.raises(StoreFailed) as failed:
        action()
    assert isinstance(failed.value, OSError)
    assert failed.value.reason.remedy
    return failed.value


def test_a_full_disk(path: Path) -> None:
    store = SqlStore(f"sqlite:///{path}")
    store.save(Changes(jobs=(JOB,)))
    store.database.engine.dispose()
    event.listen(store.database.engine, "connect", lambda c, _: c.execute("PRAGMA max_page_count=1"))
    failed = failure(lambda: store.save(Changes(log=tuple(row(n) for n in range(1, 2000)))))
    assert failed.reason.code == "disk_full"
    assert f"The database sqlite:///{path} has no space left" in str(failed)
    assert store.load().jobs == (JOB,)
    assert store.load().last_sequence == 0
    store.close()


def test_a_locked_database(path: Path) -> None:
    database = Database(f"sqlite:///{path}", busy_timeout_s=0.1)
    upgrade(database)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    def write() -> None:
        with database.writing():
            pass

    assert failure(write).reason.code == "database_locked"
    other.close()
    write()
    database.close()


def test_a_file_that_is_no_database(path: Path) -> None:
    path.write_bytes(b"something else entirely" * 100)
    assert failure(lambda: SqlStore(f"sqlite:///{path}")).reason.code == "database_damaged"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anything")
def test_a_file_that_may_not_be_written(path: Path) -> None:
    SqlStore(f"sqlite:///{path}").close()
    path.chmod(0o400)
    with pytest.raises((Refused, StoreFailed)):
        SqlStore(f"sqlite:///{path}")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("sqlite:////no/such/folder/fallow.db", "database_missing"),
        ("sqlite://", "invalid_database_url"),
        ("mysql://host/name", "invalid_database_url"),
        ("nonsense", "invalid_database_url"),
    ],
)
def test_urls_that_cannot_be_used(url: str, code: str) -> None:
    with pytest.raises(Refused) as refused:
        SqlStore(url)
    assert refused.value.reason.code == code
    assert "--db" in str(refused.value)


def test_a_server_that_does_not_answer_and_a_password_that_stays_secret() -> None:
    failed = failure(lambda: SqlStore("postgresql+psycopg://ada:hunter2@127.0.0.1:9/fallow"))
    assert failed.reason.code == "database_unreachable"
    assert "hunter2" not in str(failed)
