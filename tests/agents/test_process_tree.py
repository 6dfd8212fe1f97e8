"""Whose a process is, and that nobody else's is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.process_tree import Process, belonging, descendants, is_marked, read, send

SLEEP = (sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(60)")


@given(st.dictionaries(st.integers(2, 40), st.integers(0, 40), max_size=40))
def test_descendants_are_all_whose_line_of_parents_reaches_the_root(parents: dict[int, int]) -> None:
    processes = {pid: Process(pid, parent, "S", 0) for pid, parent in parents.items()}

    def reaches_root(pid: int) -> bool:
        seen: set[int] = set()
        while pid in parents and pid not in seen:
            seen.add(pid)
            pid = parents[pid]
            if pid == 1:
                return True
        return False

    assert descendants(1, processes) - {1} == {pid for pid in parents if reaches_root(pid)}


@pytest.mark.slow
def test_who_writes_under_the_folder_or_carries_the_mark_is_ours_who_reads_there_is_not(place: Path) -> None:
    log, elsewhere = place / "log", place.with_name(f"{place.name}.out")
    log.touch()
    plain = dict(os.environ)
    with log.open("ab") as writing, log.open("rb") as reading, elsewhere.open("ab") as away:
        started = [
            subprocess.Popen(SLEEP, stdout=writing, env=plain),
            subprocess.Popen(SLEEP, stdout=away, env={**plain, "FALLOW_AGENT_DIR": "/x"}),
            subprocess.Popen(SLEEP, stdin=reading, stdout=away, env=plain),
            subprocess.Popen(SLEEP, stdout=away, env={**plain, "FALLOW_AGENT_DIR": "/x2"}),
        ]
    try:
        while elsewhere.stat().st_size < 3 or log.stat().st_size < 1:  # until all have replaced their image
            assert all(process.poll() is None for process in started)
        found = [is_marked(process.pid, b"FALLOW_AGENT_DIR=/x", (f"{place}/",)) for process in started]
        assert found == [True, True, False, False]
        later = (read(started[1].pid) or Process(0, 0, "", 0)).started + 1
        outside = started[0].pid  # an ancestor of none of them
        assert started[1].pid in {p.pid for p in belonging(outside, b"FALLOW_AGENT_DIR=/x", ())}
        assert started[1].pid not in {p.pid for p in belonging(outside, b"FALLOW_AGENT_DIR=/x", (), since=later)}
    finally:
        for process in started:
            process.kill()
            process.wait()
        elsewhere.unlink()


@pytest.mark.slow
def test_a_process_that_took_over_an_id_is_not_signalled() -> None:
    child = subprocess.Popen(SLEEP, stdout=subprocess.DEVNULL)
    try:
        now = read(child.pid)
        assert now
        send(now._replace(started=now.started - 1), signal.SIGKILL)
        assert child.poll() is None
        send(now, signal.SIGKILL)
        assert child.wait(60) == -signal.SIGKILL
        send(now, signal.SIGKILL)  # gone: nothing happens
    finally:
        child.kill()
        child.wait()
