"""Shared by the serving tests."""

from __future__ import annotations

from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_helper_processes_are_left() -> Iterator[None]:
    """The template from which local actors are forked ends with the tests, not with pytest."""
    yield
    forkserver._forkserver._stop()
    resource_tracker._resource_tracker._stop()
