"""A stage with the tiny job, for tests of whole train jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.training import progress
from tests.training.stage import Stage
from tests.training.undisturbed import tiny_spec


@pytest.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)  # every step's loss
    made = Stage(tmp_path, tiny_spec())
    yield made
    await made.controller.detach()
    made.actors.close()
