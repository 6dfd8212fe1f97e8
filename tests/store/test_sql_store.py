"""The store: what was saved is there after a restart, whole or not at all, and only one scheduler writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text

from scheduler.domain.changes import Changes, LogRow
from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord
from scheduler.domain.jobs import Job, JobKind, JobState, Progress, Role, RoleNeed, Worker, WorkerState
from scheduler.domain.ledger import Account, AccountKey
from scheduler.domain.reasons import Refused
from scheduler.store import sql_store
from scheduler.store.sql_store import SqlStore

DEVICE = Device("cpu:0", "cpu", "a \0 model", 2**40, 4)
NODE = Node("n1", "site", NodeState.LENT, (DEVICE,), spare_devices=("cpu:0",), expected_end_s=5.5)
LEASE = Lease(LeaseKey("n1", 3), "site", LeaseState.READY, (DEVICE,), "127.0.0.1", 1.25, "c1")
JOB = Job(
    id="job-000001",
    name="train",
    kind=JobKind.TRAIN,
    user="ada",
    state=JobState.RUNNING,
    submitted_s=1.0,
    spec_json='{"kind": "train"}',
    needs=(RoleNeed(Role.TRAINER, 1, 4),),
    progress=Progress(step=3, total=9, loss=1.5, metrics=(("queue", 2.0),)),
)
WORKER = Worker("w1", JOB.id, Role.TRAINER, LEASE.key, ("cpu:0",), WorkerState.RUNNING, 2.0)
ACCOUNT = Account(AccountKey("site", "n1", JOB.id, "ada"), 10**15 + 1, 10**15, 1, 0, 0, 7)
RECLAIM = ReclaimRecord("n1", 9.0, 10.0, 1.5, "owner", 0)


def ended(number: int) -> Job:
    return replace(
        JOB, id=f"job-{number:06d}", state=JobState.DONE, submitted_s=float(number), ended_s=float(5000 - number)
    )


def row(sequence: int, job: str = "") -> LogRow:
    return LogRow(sequence, float(sequence), "kind", "a message \0", "cause-1", job=job, data_json='{"a":1}')


def test_an_empty_database_gives_an_empty_start(store: SqlStore) -> None:
    saved = store.load()
    assert (saved.jobs, saved.leases, saved.last_epoch, saved.last_sequence) == ((), (), 0, 0)


def test_everything_is_there_after_a_restart(store: SqlStore, url: str) -> None:
    store.save(
        Changes(
            nodes=(NODE,),
            leases=(LEASE,),
            jobs=(JOB,),
            workers=(WORKER,),
            requests=(("request", JOB.id),),
            accounts=(ACCOUNT,),
            reclaims=(RECLAIM,),
            log=(row(41, JOB.id),),
            last_epoch=3,
        )
    )
    store.close()
    again = SqlStore(url)
    saved = again.load()
    again.close()
    assert saved.nodes == (NODE,)
    assert saved.leases == (LEASE,)
    assert saved.jobs == (JOB,)
    assert saved.jobs[0].spec_json == JOB.spec_json
    assert saved.workers == (WORKER,)
    assert saved.requests == (("request", JOB.id),)
    assert saved.accounts == (ACCOUNT,)
    assert saved.reclaims == (RECLAIM,)
    assert (saved.last_epoch, saved.last_sequence) == (3, 41)


def test_the_newest_form_replaces_the_older(store: SqlStore) -> None:
    store.save(Changes(nodes=(NODE,), jobs=(JOB,), accounts=(ACCOUNT,)))
    newer = replace(JOB, state=JobState.PARKED, steps_lost=4)
    store.save(Changes(jobs=(newer,), accounts=(replace(ACCOUNT, lost_us=5),)))
    assert store.load().jobs == (newer,)
    assert store.load().accounts[0].lost_us == 5


def test_only_live_leases_and_workers_are_loaded(store: SqlStore) -> None:
    over = replace(LEASE, key=LeaseKey("n2", 1), state=LeaseState.ENDED, ended_s=3.0)
    store.save(
        Changes(
            leases=(LEASE, over),
            workers=(
                WORKER,
                replace(WORKER, id="w2", state=WorkerState.LOST),
                replace(WORKER, id="w3", state=WorkerState.ENDED),
            ),
        )
    )
    assert store.load().leases == (LEASE,)
    assert store.load().workers == (WORKER,)


def test_of_ended_jobs_the_last_submitted_are_loaded(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_store, "ENDED_JOBS_LOADED", 2)
    store.save(Changes(jobs=(JOB, *(ended(number) for number in range(2, 7)))))
    assert [job.id for job in store.load().jobs] == ["job-000001", "job-000005", "job-000006"]


def test_a_turn_is_saved_whole_or_not_at_all(store: SqlStore) -> None:
    store.save(Changes(jobs=(JOB,), log=(row(1),)))
    unsavable = replace(NODE, site=None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="database"):
        store.save(Changes(jobs=(replace(JOB, name="other"),), nodes=(unsavable,), log=(row(2),)))
    assert store.load().jobs == (JOB,)
    assert store.load().last_sequence == 1


def test_the_log_is_read_from_both_ends(store: SqlStore) -> None:
    store.save(Changes(log=tuple(row(n, "a" if n % 2 else "b") for n in range(1, 11))))
    assert [r.sequence for r in store.log_after(7, 2)] == [8, 9]
    assert [r.sequence for r in store.log_after(0, 3, job="b")] == [2, 4, 6]
    assert [r.sequence for r in store.log_tail(2)] == [9, 10]
    assert [r.sequence for r in store.log_tail(2, job="b")] == [8, 10]
    assert store.log_tail(1)[0].cause_id == "cause-1"


def test_saving_a_turn_again_changes_nothing(store: SqlStore) -> None:
    changes = Changes(jobs=(JOB,), reclaims=(RECLAIM,), log=(row(1),), requests=(("r", JOB.id),))
    store.save(changes)
    store.save(changes)
    assert store.load().reclaims == (RECLAIM,)
    assert len(store.log_tail(10)) == 1


def test_old_log_rows_go_first(url: str) -> None:
    store = SqlStore(url, log_rows_kept=5)
    store.save(Changes(log=tuple(row(n) for n in range(9_990, 10_001))))
    assert [r.sequence for r in store.log_tail(100)] == [9_996, 9_997, 9_998, 9_999, 10_000]
    store.close()


def test_a_second_scheduler_is_refused(store: SqlStore, url: str) -> None:
    with pytest.raises(Refused) as refused:
        SqlStore(url)
    assert refused.value.reason.code == "database_in_use"
    assert "Another scheduler is running on the database" in str(refused.value)
    store.close()
    SqlStore(url).close()


def test_a_scheduler_whose_lock_was_lost_cannot_write_over_the_next_one(store: SqlStore, url: str) -> None:
    store._owner.release()  # as when its session to the server broke
    successor = SqlStore(url)
    successor.save(Changes(last_epoch=9))
    with pytest.raises(Refused) as refused:
        store.save(Changes(last_epoch=5))
    assert refused.value.reason.code == "database_taken_over"
    assert successor.load().last_epoch == 9
    successor.close()


def test_the_file_is_private_and_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    store = SqlStore(f"sqlite:///{tmp_path / 'fallow.db'}")
    assert (tmp_path / "fallow.db").stat().st_mode & 0o777 == 0o600
    with store.database.reading() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
    store.close()
