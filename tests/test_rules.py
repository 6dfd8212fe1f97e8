"""Rules of the code base that a machine can check: who imports whom, how long files are, what they may be called."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("protocol", "scheduler", "agents", "runtime", "fallow", "bench")
MAX_LINES = 400
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def sources() -> list[Path]:
    """Every source file of ours that a person writes."""
    return [
        path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


def test_import_rules() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_too_long() -> None:
    long = {str(p.relative_to(ROOT)): n for p in sources() if (n := len(p.read_text().splitlines())) > MAX_LINES}
    assert not long


def test_modules_are_named_after_what_they_are() -> None:
    assert not [str(p.relative_to(ROOT)) for p in sources() if p.stem in EMPTY_NAMES]


@pytest.mark.parametrize("mark", ["TODO", "FIXME", "XXX:", "type: ignore\n"])
def test_nothing_is_left_for_later(mark: str) -> None:
    assert not [str(p.relative_to(ROOT)) for p in sources() if mark in p.read_text()]


def test_no_path_of_one_machine_is_in_the_code() -> None:
    places = ("/root/", "/work/", "/home/", "/tmp/bash_jobs")
    assert not [f"{p.relative_to(ROOT)}: {place}" for p in sources() for place in places if place in p.read_text()]
