"""One server a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.rpc.service import Service, database_in, serving


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    """All services, with a token of each role."""
    async with serving(database_in(tmp_path)) as running:
        yield running
