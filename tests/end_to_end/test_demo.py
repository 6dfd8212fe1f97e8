"""`make demo`, as one test: exit status 0, exactly the summary that was asked for, no law broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import run_fallow

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_demo(tmp_path: Path) -> None:
    summary_file = tmp_path / "summary.json"
    done = run_fallow(tmp_path, "demo", "--json", str(summary_file), timeout_s=580)
    assert done.code == 0, done.out + done.err
    summary = json.loads(summary_file.read_text())
    assert set(summary) == {"train", "reclaims", "serve", "device_seconds", "agent", "laws_broken"}
    assert summary["laws_broken"] == []
    assert {r["cause"] for r in summary["train"]["rescales"]} >= {"start", "reclaim", "loss", "grow"}
    assert summary["train"]["steps_lost_graceful"] == 0
    assert summary["train"]["loss_last"] < summary["train"]["loss_first"]
    assert summary["serve"]["texts_equal"] is True
    assert all(r["free_s"] <= r["grace_s"] for r in summary["reclaims"])


@pytest.mark.parametrize(("content", "said"), [(b"", "empty"), (b"\xff\xfe", "UTF-8")])
def test_bad_data_is_refused_before_anything_starts(tmp_path: Path, content: bytes, said: str) -> None:
    data = tmp_path / "text"
    data.write_bytes(content)
    done = run_fallow(tmp_path, "demo", "--data", str(data))
    assert done.code == 4
    assert said in done.err
