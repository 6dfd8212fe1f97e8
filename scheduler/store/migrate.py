"""Leads a database of any older Fallow to the tables of this one, and refuses one of a newer Fallow."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from scheduler.domain.reasons import Reason, Refused
from scheduler.store.database import Database
from scheduler.store.failures import shown

_UPGRADE_LOCK = 0x66616C6C6F77  # "fallow"; PostgreSQL advisory locks are numbers


def upgrade(database: Database) -> str:
    """Bring the tables to this version's and return its name; nothing is changed if they are there already.

    The whole upgrade is one transaction. Raises `Refused` for a database that a newer Fallow wrote.
    """
    config = _config()
    newest = ScriptDirectory.from_config(config).get_current_head() or ""
    with database.reading() as connection:
        if _checked_revision(connection, config, database.url) == newest:
            return newest
    with database.writing() as connection:
        if not database.is_sqlite:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
        if _checked_revision(connection, config, database.url) != newest:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    return newest


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.set_main_option("path_separator", "os")
    return config


def _checked_revision(connection: Connection, config: Config, url: str) -> str | None:
    revision = MigrationContext.configure(connection).get_current_revision()
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    if revision is not None and revision not in known:
        what = (
            f"The database {shown(url)} was written by a newer Fallow: its tables are of version {revision}, "
            f"this Fallow knows versions up to {scripts.get_current_head()}."
        )
        raise Refused(Reason("database_newer", what, "Install that Fallow, or name another database with --db."))
    return revision
