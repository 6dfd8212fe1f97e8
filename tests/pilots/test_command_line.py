"""`fallow pilots` and `fallow site --slurm`: what they take, and what they say of what they cannot take."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.pilots import command_line, errand, inside, settings
from agents.pilots.settings import InvalidSettings
from fallow.cli import local
from fallow.errors import UsageError


@pytest.fixture
def given(tmp_path: Path) -> dict[str, object]:
    """Everything that has to be there."""
    for role in ("site", "agent"):
        (tmp_path / role).write_text("fallow-x")
        (tmp_path / role).chmod(0o600)
    return {
        "site": "mini",
        "scheduler": "login:7070",
        "token_file": str(tmp_path / "site"),
        "agent_token_file": str(tmp_path / "agent"),
        "dir": str(tmp_path / "pilots"),
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"site": "a b"}, "site: .*letters"),
        ({"scheduler": "login"}, "scheduler: "),
        ({"bag.nodes": 0}, "bag.nodes: .*greater than or equal to 1"),
        ({"bag.nodez": 3}, "bag.nodez: Extra inputs"),
        ({"bag.lengths_min": ["x"]}, "bag.lengths_min"),
        ({"system": "lsf"}, "system: "),
    ],
)
def test_wrong_settings_are_named(given: dict[str, object], change: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidSettings, match=words):
        settings.read(None, {**given, **change})


def test_what_is_missing_is_named_with_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["--slurm"]) == 2
    assert "--agent-token-file" in capsys.readouterr().err


def test_options_go_before_the_file(given: dict[str, object], tmp_path: Path) -> None:
    file = tmp_path / "pilots.yaml"
    file.write_text(yaml.safe_dump({**given, "bag": {"nodes": 3, "lengths_min": [8, 2]}}))
    told = settings.read(file, {"bag.nodes": "5"})
    assert (told.bag.nodes, told.bag.lengths_min) == (5, (2.0, 8.0))


def test_a_token_that_others_can_read_is_refused(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    Path(given["agent_token_file"]).chmod(0o644)
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert command_line.main(["--slurm", *words]) == 2
    assert "chmod 600" in capsys.readouterr().err


def test_what_a_pilot_is_told_holds_no_secret(given: dict[str, object], tmp_path: Path) -> None:
    plan = command_line.plan(settings.read(None, {**given, "agent.cores": 4}))
    plan.errand.write(tmp_path)
    file = tmp_path / errand.NAME
    assert file.stat().st_mode & 0o077 == 0
    assert "fallow-x" not in file.read_text()
    assert errand.read(file) == plan.errand
    assert plan.errand.agent[:2] == ("--cores", "4")


def test_a_pilot_without_work_ends_at_once(
    given: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line.plan(settings.read(None, given)).errand.write(tmp_path)
    assert inside.main(["--config", str(tmp_path / errand.NAME), "--length-s", "60"]) == 0
    assert "no work" in capsys.readouterr().err


def test_a_killed_pilot_s_folder_is_removed_and_a_live_one_s_is_not(tmp_path: Path) -> None:
    from agents.folder import prepare

    prefix = inside._prefix()
    left, live = tmp_path / f"{prefix}1", tmp_path / f"{prefix}2"
    left.mkdir()
    (left / "agent.lock").touch()
    (left / "raylet.log").touch()
    lock = prepare(live)
    inside.clear_up(tmp_path, 2e9)
    assert (left.exists(), live.exists()) == (False, True)
    assert lock


def test_the_site_starts_pilots_with_what_it_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, **_: started.append(command))
    words = ["fallow", "site", "--name", "mini", "--slurm", "p.yaml", "--scheduler", "a:1", "--token-file", "t"]
    local._start_pilots(words)
    assert words == ["fallow", "site", "--name", "mini", "--scheduler", "a:1", "--token-file", "t"]
    assert started[0][3:] == [
        *("pilots", "--slurm", "--config", "p.yaml"),
        *("--site", "mini", "--scheduler", "a:1", "--token-file", "t"),
    ]
    with pytest.raises(UsageError, match="--slurm needs the file"):
        local._start_pilots(["fallow", "site", "--slurm", "--name", "x"])
