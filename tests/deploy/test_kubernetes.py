"""The Kubernetes manifests: valid by the published schema, and right in what the schema cannot know."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from agents.__main__ import parser

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"


def manifests() -> Iterator[Any]:
    for file in sorted(FOLDER.glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield pytest.param(document, id=f"{file.stem}-{document['kind']}")


def pods() -> list[Any]:
    return [p for p in manifests() if p.values[0]["kind"] in ("DaemonSet", "Deployment")]


@pytest.mark.parametrize("manifest", list(manifests()))
@pytest.mark.parametrize("version", ["1.28", "1.33"])
def test_valid_by_the_published_schema(manifest: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("manifest", pods())
def test_the_agent_is_told_less_than_the_notice(manifest: dict[str, Any]) -> None:
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    command, *options = container["args"]
    told = parser().parse_args(options)
    assert command == "agent"
    assert told.grace_s <= pod["terminationGracePeriodSeconds"] - 5
    assert told.source == ["pilot"]
    assert {"FALLOW_PILOT", "POD_IP"} <= {variable["name"] for variable in container["env"]}
    assert not [variable for variable in container["env"] if "token" in variable["name"].lower()]


@pytest.mark.parametrize("manifest", pods())
def test_everything_else_goes_before_it(manifest: dict[str, Any]) -> None:
    (priority,) = (p.values[0] for p in manifests() if p.values[0]["kind"] == "PriorityClass")
    assert manifest["spec"]["template"]["spec"]["priorityClassName"] == priority["metadata"]["name"]
    assert priority["value"] < 0
    assert priority["preemptionPolicy"] == "Never"
