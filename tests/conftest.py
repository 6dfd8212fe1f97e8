"""Shared by all tests: whatever a test run starts must be gone when it ends."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.processes import belonging, signal_all

os.environ.setdefault(
    "MKL_CBWR", "AUTO,STRICT"
)  # as in workers (runtime.training.actor): read once, by torch's first use

RUN_VARIABLE = "FALLOW_TEST_RUN"
_PATIENCE_S = 20.0


@pytest.fixture(scope="session", autouse=True)
def nothing_of_ours_is_left() -> Iterator[None]:
    """Mark this run in the environment that every process inherits; at the end, demand that all of them ended.

    A process that is gone holds no port. Files below a test's own folder are pytest's to remove.
    """
    run = uuid.uuid4().hex
    os.environ[RUN_VARIABLE] = run
    yield
    deadline_s = time.monotonic() + _PATIENCE_S
    while (left := belonging(RUN_VARIABLE, lambda value: value == run)) and time.monotonic() < deadline_s:
        time.sleep(0.2)
    described = [f"{pid}: {_command(pid)}" for pid in left]
    signal_all(left, 9)
    assert not described, "processes of this test run were left:\n" + "\n".join(described)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(gone)"
