"""A stage with the tiny job, for tests of whole train jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from runtime.training import progress
from tests.training.stage import Stage
from tests.training.undisturbed import tiny_spec


@pytest.fixture
async def made_stage(tmp_path: Path) -> Stage:
    """Override it for another job."""
    return Stage(tmp_path, tiny_spec())


@pytest.fixture
async def stage(made_stage: Stage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    monkeypatch.setattr(progress, "EVERY_S", 0.0)  # every step's loss
    yield made_stage
    await made_stage.controller.detach()
    made_stage.actors.close()
