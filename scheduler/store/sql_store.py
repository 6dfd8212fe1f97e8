"""The store in SQL: SQLite by default, PostgreSQL where a site has one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, delete, func, or_, select

from scheduler.domain.cluster import Lease, LeaseState, Node, ReclaimRecord
from scheduler.domain.jobs import Job, Worker, WorkerState
from scheduler.domain.ledger import Account, AccountKey
from scheduler.store import schema
from scheduler.store.codec import from_text, to_text
from scheduler.store.database import Database
from scheduler.store.migrate import upgrade
from scheduler.store.ownership import Ownership
from scheduler.store.port import Changes, LogRow, Saved

ENDED_JOBS_LOADED = 1_000
"""How many ended jobs, the last submitted ones, a restarted scheduler still lists; others stay in the table."""
RECLAIMS_LOADED = 1_000
REQUESTS_LOADED = 100_000
ENDED_LEASES_LOADED = 50_000
"""Of how many leases, the last ones that ended, a restarted scheduler still knows how long they lasted."""
LOG_ROWS_KEPT = 500_000
"""Rows of the event log; the oldest go first."""
_PRUNE_EVERY = 10_000


class SqlStore:
    """Implements `Store`. Opening it upgrades the tables and makes this process the database's one scheduler.

    Raises `Refused` where that cannot be, and `StoreFailed` (an OSError) whenever the database fails.
    """

    def __init__(self, url: str, log_rows_kept: int = LOG_ROWS_KEPT) -> None:
        self.database = Database(url)
        self._log_rows_kept = log_rows_kept
        try:
            upgrade(self.database)
            self._owner = Ownership(self.database)
        except BaseException:
            self.database.close()
            raise

    def close(self) -> None:
        """Let the database go; another scheduler may take it."""
        self._owner.release()
        self.database.close()

    def load(self) -> Saved:
        """See `Store`."""
        with self.database.reading() as connection:
            return Saved(
                nodes=tuple(from_text(Node, body) for body in _bodies(connection, schema.nodes, schema.nodes.c.id)),
                leases=_live_leases(connection),
                jobs=_jobs(connection),
                workers=_live_workers(connection),
                requests=_requests(connection),
                accounts=tuple(map(_account, connection.execute(select(schema.accounts).order_by(*_ACCOUNT_KEY)))),
                reclaims=_reclaims(connection),
                last_epoch=_number(connection, "last_epoch"),
                last_sequence=connection.scalar(select(func.max(schema.log.c.sequence))) or 0,
                ended=_ended_leases(connection),
            )

    def save(self, changes: Changes) -> None:
        """See `Store`."""
        put = self.database.put
        with self.database.writing() as connection:
            self._owner.check(connection)
            put(connection, schema.nodes, [_node_row(node) for node in changes.nodes])
            put(connection, schema.leases, [_lease_row(lease) for lease in changes.leases])
            put(connection, schema.jobs, [_job_row(job) for job in changes.jobs], keep="spec_json")
            put(connection, schema.workers, [_worker_row(worker) for worker in changes.workers])
            put(connection, schema.requests, [{"id": request, "job": job} for request, job in changes.requests])
            put(connection, schema.accounts, [_account_row(account) for account in changes.accounts])
            put(connection, schema.reclaims, [_reclaim_row(record) for record in changes.reclaims])
            put(connection, schema.log, [_log_row(row) for row in changes.log])
            if changes.last_epoch is not None:
                put(connection, schema.numbers, [{"name": "last_epoch", "value": changes.last_epoch}])
            self._prune(connection, changes.log)

    def log_after(self, sequence: int, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """See `Store`."""
        row = schema.log.c
        query = select(schema.log).where(row.sequence > sequence).order_by(row.sequence).limit(limit)
        with self.database.reading() as connection:
            return _log_rows(connection.execute(_of_job(query, job)))

    def log_tail(self, limit: int, job: str = "") -> tuple[LogRow, ...]:
        """See `Store`."""
        query = select(schema.log).order_by(schema.log.c.sequence.desc()).limit(limit)
        with self.database.reading() as connection:
            return _log_rows(connection.execute(_of_job(query, job)))[::-1]

    def _prune(self, connection: Connection, rows: tuple[LogRow, ...]) -> None:
        if rows and rows[0].sequence // _PRUNE_EVERY != (rows[-1].sequence + 1) // _PRUNE_EVERY:
            oldest = rows[-1].sequence - self._log_rows_kept
            connection.execute(delete(schema.log).where(schema.log.c.sequence <= oldest))


def without_nul(text: str) -> str:
    """PostgreSQL keeps any character but NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


# --- rows --------------------------------------------------------------------------------------------------------


def _node_row(node: Node) -> dict[str, Any]:
    return {"id": node.id, "site": node.site, "state": node.state.value, "body": to_text(node)}


def _lease_row(lease: Lease) -> dict[str, Any]:
    return {
        "node": lease.key.node,
        "epoch": lease.key.epoch,
        "site": lease.site,
        "state": lease.state.value,
        "started_s": lease.started_s,
        "ended_s": lease.ended_s,
        "body": to_text(lease),
    }


def _job_row(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.name,
        "kind": job.kind.value,
        "owner": job.user,
        "state": job.state.value,
        "submitted_s": job.submitted_s,
        "ended_s": job.ended_s,
        "spec_json": without_nul(job.spec_json),
        "body": to_text(job, without=("spec_json",)),
    }


def _worker_row(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.id,
        "job": worker.job,
        "node": worker.lease.node,
        "epoch": worker.lease.epoch,
        "state": worker.state.value,
        "since_s": worker.since_s,
        "body": to_text(worker),
    }


def _account_row(account: Account) -> dict[str, Any]:
    key = account.key
    return {
        "site": key.site,
        "node": key.node,
        "job": key.job,
        "owner": key.user,
        "borrowed_us": account.borrowed_us,
        "useful_us": account.useful_us,
        "rescale_us": account.rescale_us,
        "idle_us": account.idle_us,
        "lost_us": account.lost_us,
        "energy_mj": account.energy_mj,
    }


def _account(row: Iterable[Any]) -> Account:
    site, node, job, owner, *amounts = row
    return Account(AccountKey(site, node, job, owner), *amounts)


def _reclaim_row(record: ReclaimRecord) -> dict[str, Any]:
    return {
        "node": record.node,
        "at_s": record.at_s,
        "grace_s": record.grace_s,
        "free_s": record.free_s,
        "cause": without_nul(record.cause),
        "killed": record.killed,
    }


def _log_row(row: LogRow) -> dict[str, Any]:
    return {
        "sequence": row.sequence,
        "at_s": row.at_s,
        "kind": row.kind,
        "message": without_nul(row.message),
        "cause_id": without_nul(row.cause_id),
        "job": row.job,
        "node": row.node,
        "site": row.site,
        "data_json": without_nul(row.data_json),
    }


def _log_rows(rows: Iterable[Iterable[Any]]) -> tuple[LogRow, ...]:
    return tuple(LogRow(*row) for row in rows)


# --- queries -----------------------------------------------------------------------------------------------------

_account_column = schema.accounts.c
_ACCOUNT_KEY = (_account_column.site, _account_column.node, _account_column.job, _account_column.owner)


def _bodies(connection: Connection, table: Any, *order: Any, where: Any = None) -> Iterable[str]:
    query = select(table.c.body).order_by(*order)
    return connection.scalars(query if where is None else query.where(where))


def _live_leases(connection: Connection) -> tuple[Lease, ...]:
    lease = schema.leases.c
    live = lease.state != LeaseState.ENDED.value
    return tuple(
        from_text(Lease, body) for body in _bodies(connection, schema.leases, lease.node, lease.epoch, where=live)
    )


def _ended_leases(connection: Connection) -> tuple[Lease, ...]:
    lease = schema.leases.c
    newest = (
        select(lease.body)
        .where(lease.state == LeaseState.ENDED.value)
        .order_by(lease.ended_s.desc(), lease.epoch.desc())
        .limit(ENDED_LEASES_LOADED)
    )
    return tuple(from_text(Lease, body) for body in connection.scalars(newest))[::-1]


def _live_workers(connection: Connection) -> tuple[Worker, ...]:
    worker = schema.workers.c
    live = worker.state.not_in((WorkerState.ENDED.value, WorkerState.LOST.value))
    return tuple(from_text(Worker, body) for body in _bodies(connection, schema.workers, worker.id, where=live))


def _jobs(connection: Connection) -> tuple[Job, ...]:
    job = schema.jobs.c
    ended = (
        select(job.id)
        .where(job.ended_s.is_not(None))
        .order_by(job.submitted_s.desc(), job.id.desc())
        .limit(ENDED_JOBS_LOADED)
    )
    wanted = or_(job.ended_s.is_(None), job.id.in_(ended.scalar_subquery()))
    rows = connection.execute(select(job.body, job.spec_json).where(wanted).order_by(job.submitted_s, job.id))
    return tuple(from_text(Job, body, spec_json=spec) for body, spec in rows)


def _requests(connection: Connection) -> tuple[tuple[str, str], ...]:
    request, job = schema.requests.c, schema.jobs.c
    newest = (
        select(request.id, request.job)
        .join(schema.jobs, job.id == request.job)
        .order_by(job.submitted_s.desc(), request.id)
        .limit(REQUESTS_LOADED)
    )
    return tuple((str(name), str(job_id)) for name, job_id in connection.execute(newest))[::-1]


def _reclaims(connection: Connection) -> tuple[ReclaimRecord, ...]:
    record = schema.reclaims.c
    rows = connection.execute(
        select(schema.reclaims).order_by(record.at_s.desc(), record.node.desc()).limit(RECLAIMS_LOADED)
    )
    return tuple(ReclaimRecord(*row) for row in rows)[::-1]


def _number(connection: Connection, name: str) -> int:
    return connection.scalar(select(schema.numbers.c.value).where(schema.numbers.c.name == name)) or 0


def _of_job(query: Select[Any], job: str) -> Select[Any]:
    return query.where(schema.log.c.job == job) if job else query
