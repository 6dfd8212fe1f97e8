"""Old databases are led to the present tables, newer ones are refused."""

from __future__ import annotations

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from scheduler.domain.reasons import Refused
from scheduler.store.database import Database
from scheduler.store.migrate import upgrade
from scheduler.store.schema import metadata


def test_migrations_lead_to_exactly_the_tables_that_the_code_knows(url: str) -> None:
    database = Database(url)
    upgrade(database)
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.close()


def test_upgrading_twice_changes_nothing(url: str) -> None:
    database = Database(url)
    assert upgrade(database) == upgrade(database) == "0001"
    database.close()


def test_a_database_of_a_newer_fallow_is_refused_untouched(url: str) -> None:
    database = Database(url)
    upgrade(database)
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(Refused) as refused:
        upgrade(database)
    assert refused.value.reason.code == "database_newer"
    assert "tables are of version 9999, this Fallow knows versions up to 0001" in str(refused.value)
    database.close()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(url: str) -> None:
    database = Database(url)
    with database.writing() as connection:
        connection.execute(text("CREATE TABLE tokens (mine INTEGER)"))  # the last table that the upgrade makes
    with pytest.raises(OSError, match="tokens"):
        upgrade(database)
    assert inspect(database.engine).get_table_names() == ["tokens"]
    database.close()
