"""The executor contract, kept over gRPC by real agents, a real site and Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.executor_contract import AccidentContract
from tests.contract.ray_home import RayHarness, RayHome

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHome]:
    made = RayHome(tmp_path_factory.mktemp("home"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


class TestRay(AccidentContract):
    @pytest.fixture
    def harness(self, home: RayHome, tmp_path: Path) -> Iterator[RayHarness]:
        made = RayHarness(home, tmp_path)
        yield made
        made.clean()
