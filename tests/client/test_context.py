from __future__ import annotations

import stat

import pytest

from fallow.context import Context, home_dir, read_context, resolve_context
from fallow.errors import UsageError


def test_without_anything_it_says_how_to_begin() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_context()
    assert "fallow up" in caught.value.remedy


def test_arguments_win_over_environment_over_saved_context(monkeypatch: pytest.MonkeyPatch) -> None:
    Context("saved:1", "saved-token").write(home_dir())
    assert resolve_context().address == "saved:1"
    monkeypatch.setenv("FALLOW_ADDRESS", "environment:2")
    monkeypatch.setenv("FALLOW_TOKEN", "environment-token")
    assert resolve_context().token == "environment-token"
    assert resolve_context("argument:3", "argument-token").address == "argument:3"


def test_a_saved_token_goes_to_no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    Context("saved:1", "saved-token").write(home_dir())
    monkeypatch.setenv("FALLOW_ADDRESS", "stranger:2")
    assert resolve_context().token == ""


def test_the_context_is_for_its_owner_alone() -> None:
    Context("saved:1", "secret").write(home_dir())
    assert stat.S_IMODE((home_dir() / "context.json").stat().st_mode) == 0o600
    assert "secret" not in repr(read_context(home_dir()))


def test_a_broken_context_says_which_file() -> None:
    home_dir().mkdir(parents=True)
    (home_dir() / "context.json").write_text("{")
    with pytest.raises(UsageError, match=r"context\.json"):
        resolve_context()
