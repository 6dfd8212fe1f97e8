"""Each test of the store runs on SQLite and, where a server is installed, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.store.sql_store import SqlStore
from tests.store import postgres


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Postgres]:
    """One server for the run."""
    reason = postgres.missing()
    if reason:
        pytest.skip(reason)
    with postgres.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fallow.db'}"
    server: postgres.Postgres = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[SqlStore]:
    """An open store on an empty database."""
    opened = SqlStore(url)
    yield opened
    opened.close()
