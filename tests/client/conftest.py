from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fallow.client import Client
from tests.client.fake_scheduler import FakeScheduler, serve


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FALLOW_ADDRESS", "FALLOW_TOKEN", "FALLOW_TLS_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FALLOW_HOME", str(tmp_path / "home"))


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeScheduler]:
    fake = FakeScheduler()
    server, address = serve(fake)
    monkeypatch.setenv("FALLOW_ADDRESS", address)
    monkeypatch.setenv("FALLOW_TOKEN", "fallow-user-abc")
    yield fake
    server.stop(None)


@pytest.fixture
def client(scheduler: FakeScheduler) -> Iterator[Client]:
    with Client() as client:
        yield client
