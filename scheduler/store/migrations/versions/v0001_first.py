"""The first tables.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Double, Index, String, Text, text

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create everything."""
    op.create_table(
        "numbers",
        Column("name", String(64), primary_key=True),
        Column("value", BigInteger, nullable=False),
    )
    op.create_table(
        "nodes",
        Column("id", String(256), primary_key=True),
        Column("site", String(256), nullable=False),
        Column("state", String(32), nullable=False),
        Column("body", Text, nullable=False),
    )
    op.create_table(
        "leases",
        Column("node", String(256), primary_key=True),
        Column("epoch", BigInteger, primary_key=True, autoincrement=False),
        Column("site", String(256), nullable=False),
        Column("state", String(32), nullable=False, index=True),
        Column("started_s", Double, nullable=False),
        Column("ended_s", Double),
        Column("body", Text, nullable=False),
    )
    op.create_table(
        "jobs",
        Column("id", String(256), primary_key=True),
        Column("name", String(256), nullable=False, index=True),
        Column("kind", String(32), nullable=False),
        Column("owner", String(256), nullable=False),
        Column("state", String(32), nullable=False),
        Column("submitted_s", Double, nullable=False),
        Column("ended_s", Double, index=True),
        Column("spec_json", Text, nullable=False),
        Column("body", Text, nullable=False),
    )
    op.create_table(
        "workers",
        Column("id", String(256), primary_key=True),
        Column("job", String(256), nullable=False, index=True),
        Column("node", String(256), nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("state", String(32), nullable=False, index=True),
        Column("since_s", Double, nullable=False),
        Column("body", Text, nullable=False),
    )
    op.create_table(
        "requests",
        Column("id", String(256), primary_key=True),
        Column("job", String(256), nullable=False),
    )
    op.create_table(
        "accounts",
        Column("site", String(256), primary_key=True),
        Column("node", String(256), primary_key=True),
        Column("job", String(256), primary_key=True),
        Column("owner", String(256), primary_key=True),
        Column("borrowed_us", BigInteger, nullable=False),
        Column("useful_us", BigInteger, nullable=False),
        Column("rescale_us", BigInteger, nullable=False),
        Column("idle_us", BigInteger, nullable=False),
        Column("lost_us", BigInteger, nullable=False),
        Column("energy_mj", BigInteger, nullable=False),
    )
    op.create_table(
        "reclaims",
        Column("node", String(256), primary_key=True),
        Column("at_s", Double, primary_key=True),
        Column("grace_s", Double, nullable=False),
        Column("free_s", Double, nullable=False),
        Column("cause", Text, nullable=False),
        Column("killed", BigInteger, nullable=False),
    )
    op.create_table(
        "log",
        Column("sequence", BigInteger, primary_key=True, autoincrement=False),
        Column("at_s", Double, nullable=False),
        Column("kind", String(64), nullable=False),
        Column("message", Text, nullable=False),
        Column("cause_id", Text, nullable=False),
        Column("job", String(256), nullable=False),
        Column("node", String(256), nullable=False),
        Column("site", String(256), nullable=False),
        Column("data_json", Text, nullable=False),
        Index("log_by_job", "job", "sequence"),
    )
    op.create_table(
        "log_lines",
        Column("job", String(256), primary_key=True),
        Column("sequence", BigInteger, primary_key=True, autoincrement=False),
        Column("at_s", Double, nullable=False),
        Column("worker", String(256), nullable=False),
        Column("line", Text, nullable=False),
    )
    op.create_table(
        "tokens",
        Column("hash", String(64), primary_key=True),
        Column("name", String(256), nullable=False),
        Column("role", String(32), nullable=False),
        Column("created_s", Double, nullable=False),
        Column("expires_s", Double),
        Column("revoked_s", Double),
        Index(
            "one_live_token_a_name",
            "name",
            unique=True,
            sqlite_where=text("revoked_s IS NULL"),
            postgresql_where=text("revoked_s IS NULL"),
        ),
    )
