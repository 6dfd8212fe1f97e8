from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

from fallow import processes
from fallow.errors import FallowError
from fallow.processes import Part

WRITES_READY = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1] + "~").write_text('{"address": "a"}')
os.replace(sys.argv[1] + "~", sys.argv[1])
time.sleep(60)
"""
CLEARS_UP = """
import os, signal
from fallow.processes import exiting_on_sigterm
with exiting_on_sigterm():
    try:
        print("ready", flush=True)
        signal.pause()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleared up")
print("unreached")
"""
HAS_A_CHILD = "import os, time; os.setsid() if os.fork() == 0 else None; time.sleep(60)"


def part(folder: Path, code: str, *arguments: str) -> Part:
    return Part("p", ("-c", code, *arguments), folder / "p.log", folder / "p.ready", folder / "p.pid")


def test_ready_when_it_says_so(tmp_path: Path) -> None:
    one = part(tmp_path, WRITES_READY, str(tmp_path / "p.ready"))
    pid = processes.start(one, {})
    assert processes.await_ready(one, 30) == {"address": "a"}
    assert processes.pid_of(one) == pid
    processes.signal_all([pid], signal.SIGTERM)
    assert processes.await_end([pid], 30)
    assert processes.pid_of(one) is None


def test_an_early_end_shows_the_log(tmp_path: Path) -> None:
    one = part(tmp_path, "raise SystemExit('the port is in use')")
    processes.start(one, {})
    with pytest.raises(FallowError, match="the port is in use"):
        processes.await_ready(one, 30)


def test_a_marker_finds_children_that_left_the_session(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    processes.start(part(tmp_path, HAS_A_CHILD), {"FALLOW_TEST_MARK": mark})
    deadline_s = time.monotonic() + 30
    while len(found := processes.belonging("FALLOW_TEST_MARK", lambda v: v == mark)) < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    assert processes.belonging("FALLOW_TEST_MARK", lambda v: v == mark[:-1]) == []
    processes.signal_all(found, signal.SIGKILL)
    assert processes.await_end(found, 30)


def test_a_recycled_pid_is_not_ours(tmp_path: Path) -> None:
    one = part(tmp_path, "")
    born_s = psutil.Process(os.getpid()).create_time()
    one.pid_file.write_text(json.dumps({"pid": os.getpid(), "started_s": born_s - 1000}))
    assert processes.pid_of(one) is None


def test_secrets_of_the_shell_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLOW_TOKEN", "secret")
    one = part(tmp_path, "import os; print(os.environ.get('FALLOW_TOKEN'), flush=True)")
    pid = processes.start(one, {})
    assert processes.await_end([pid], 30)
    assert one.log.read_text().strip() == "None"


def test_sigterm_lets_a_process_clear_up_undisturbed_by_another() -> None:
    process = subprocess.Popen([sys.executable, "-c", CLEARS_UP], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.communicate(timeout=30) == ("cleared up\n", None)
    assert process.returncode == 128 + signal.SIGTERM
