"""A train job that is small enough for tests, and waiting for what it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fallow.client import Client
from fallow.errors import Unreachable
from fallow.results import Job

MODEL = {"vocab_size": 320, "hidden_size": 32, "layers": 2, "heads": 2, "experts": 4, "expert_size": 32}


def train_spec(output: Path, *, steps: int = 2000, width: tuple[int, int] = (2, 3), **changes: Any) -> dict[str, Any]:
    """A spec of a train job of a very small model."""
    part = {"model": MODEL, "steps": steps, "global_batch": 8, "sequence_length": 32, "output": str(output)}
    return {
        "kind": "train",
        "name": "small",
        "width": {"min": width[0], "max": width[1]},
        "train": {**part, "snapshot_every": 4, **changes},
    }


def until(client: Client, job: str, reached: Callable[[Job], bool], timeout_s: float = 120.0) -> Job:
    """The job once something is true of it. Fails when it ends first, or takes too long."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            now = client.job(job)
        except Unreachable:
            now = None
        if now is not None and reached(now):
            return now
        assert now is None or not now.is_over, f"the job ended: {now}"
        assert time.monotonic() < deadline_s, f"waited {timeout_s} s in vain: {now}"
        time.sleep(0.2)
