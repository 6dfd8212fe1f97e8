"""docker-compose.yml: valid by the Compose schema, and every option in it is one that our processes know."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
PROCESSES = {
    "scheduler": ["scheduler", "serve"],
    "site": ["runtime", "site"],
    "agent-1": ["agents"],
    "agent-2": ["agents"],
}


def test_valid_by_the_compose_schema() -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(ROOT / "docker-compose.yml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", PROCESSES)
def test_every_option_is_known(service: str) -> None:
    given = {word.partition("=")[0] for word in COMPOSE["services"][service]["command"] if word.startswith("--")}
    command = [sys.executable, "-m", *PROCESSES[service], "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert given
    assert not {option for option in given if option not in known}


def test_every_secret_that_is_read_is_made() -> None:
    made = (ROOT / "deploy" / "bootstrap").read_text()
    for name, service in COMPOSE["services"].items():
        if name == "bootstrap":
            continue
        mounted = {volume.split(":")[1] for volume in service.get("volumes", ())}
        for word in service.get("command", ()):
            path = Path(word.partition("=")[2])
            if path.is_relative_to("/secrets"):
                assert str(path.parent) in mounted, f"{name} reads {path} but does not mount it"
                assert path.name in made, f"{path} is never made"


def test_nothing_listens_to_other_machines() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
