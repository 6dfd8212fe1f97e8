"""The tables as this version of Fallow knows them; `migrations/` leads any older database here.

Entities lie whole in `body` (see `codec`); the other columns repeat what people search and sort by. A job's spec has
a column of its own, because it may be large and never changes while the rest of the job does.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Index, MetaData, String, Table, Text, text

metadata = MetaData()

numbers = Table(
    "numbers",
    metadata,
    Column("name", String(64), primary_key=True),  # "last_epoch", "owner"
    Column("value", BigInteger, nullable=False),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String(256), primary_key=True),
    Column("site", String(256), nullable=False),
    Column("state", String(32), nullable=False),
    Column("body", Text, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("node", String(256), primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("site", String(256), nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("started_s", Double, nullable=False),
    Column("ended_s", Double),
    Column("body", Text, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
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

workers = Table(
    "workers",
    metadata,
    Column("id", String(256), primary_key=True),
    Column("job", String(256), nullable=False, index=True),
    Column("node", String(256), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", String(32), nullable=False, index=True),
    Column("since_s", Double, nullable=False),
    Column("body", Text, nullable=False),
)

requests = Table(
    "requests",
    metadata,
    Column("id", String(256), primary_key=True),
    Column("job", String(256), nullable=False),
)

accounts = Table(
    "accounts",
    metadata,
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

reclaims = Table(
    "reclaims",
    metadata,
    Column("node", String(256), primary_key=True),
    Column("at_s", Double, primary_key=True),
    Column("grace_s", Double, nullable=False),
    Column("free_s", Double, nullable=False),
    Column("cause", Text, nullable=False),
    Column("killed", BigInteger, nullable=False),
)

log = Table(
    "log",
    metadata,
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

log_lines = Table(
    "log_lines",
    metadata,
    Column("job", String(256), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("at_s", Double, nullable=False),
    Column("worker", String(256), nullable=False),
    Column("line", Text, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
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
