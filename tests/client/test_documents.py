"""What the documents show is true: their job specs are valid, their commands exist, their links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from fallow.specs import load_spec
from protocol import jobspec

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
CODE = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[tuple[str, str]]:
    """Every code block in that language, with its document's name."""
    return [
        (path.name, text) for path in DOCUMENTS for kind, text in CODE.findall(path.read_text()) if kind == language
    ]


@pytest.mark.parametrize(("document", "text"), blocks("yaml"))
def test_job_specs_in_documents_are_valid(document: str, text: str) -> None:
    assert jobspec.parse_yaml(text).name


def test_the_examples_are_valid(tmp_path: Path) -> None:
    assert load_spec(ROOT / "examples" / "train-moe.yaml").max_width == 4
    serve = jobspec.parse_yaml((ROOT / "examples" / "serve-moe.yaml").read_text())
    assert serve.serve is not None
    assert serve.serve.copies == 2


def test_every_command_in_documents_exists() -> None:
    known = subprocess.run([sys.executable, "-m", "fallow", "--help"], capture_output=True, text=True).stdout
    shown = {word for _, text in blocks("sh") for word in re.findall(r"^(?:\.venv/bin/)?fallow ([a-z]+)", text, re.M)}
    assert shown
    assert not {word for word in shown if not re.search(rf"^  {word}\b", known, re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert not [link for link in links if "://" not in link and not (document.parent / link).exists()]
