from __future__ import annotations

import json
from pathlib import Path

import pytest

from fallow.errors import InvalidSpec, UsageError
from fallow.specs import load_spec
from protocol.models import ModelConfig

TRAIN = "kind: train\nname: poem\nwidth: {min: 2, max: 4}\ntrain: {data: DATA, output: out}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path) -> str:
    with pytest.raises(InvalidSpec) as caught:
        load_spec(path)
    return "\n".join(caught.value.problems)


def test_relative_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("学而时习之，不亦说乎", encoding="utf-8")
    spec = load_spec(write(tmp_path, TRAIN.replace("DATA", "text.txt")))
    assert spec.train is not None
    assert spec.train.data == str(tmp_path / "text.txt")
    assert spec.train.output == str(tmp_path / "out")


def test_relative_paths_of_a_mapping_start_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = load_spec({"kind": "task", "name": "t", "task": {"command": ["true"], "output": "out"}})
    assert spec.task is not None
    assert spec.task.output == str(tmp_path / "out")


def test_pydoc_is_no_path(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, TRAIN.replace("DATA", "pydoc")))
    assert spec.train is not None
    assert spec.train.data == "pydoc"


def test_loading_twice_changes_nothing(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, TRAIN.replace("DATA", "pydoc")))
    assert load_spec(spec) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind: [train", "not YAML"),
        ("just words", "must be a mapping"),
        (TRAIN.replace("min: 2", "min: 5").replace("DATA", "pydoc"), "min (5) is greater than max (4)"),
        (TRAIN.replace("DATA", "pydoc") + "colour: red\n", "colour"),
        (TRAIN.replace("DATA", "../secrets"), "'..'"),
        (TRAIN.replace("min: 2", "min: '2'").replace("DATA", "pydoc"), "width.min"),
    ],
)
def test_bad_specs_name_the_field(tmp_path: Path, text: str, said: str) -> None:
    assert said in problems(write(tmp_path, text))


def test_empty_data_is_refused_before_the_submit(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("  \n")
    assert "is empty" in problems(write(tmp_path, TRAIN.replace("DATA", "empty.txt")))


def test_data_that_is_not_utf8_is_refused_before_the_submit(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Ångström".encode("latin-1"))
    assert "not UTF-8" in problems(write(tmp_path, TRAIN.replace("DATA", "latin.txt")))


def test_a_spec_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"kind: \xff")
    assert "UTF-8" in problems(path)


def test_a_huge_spec_is_refused_unread(tmp_path: Path) -> None:
    assert "larger than" in problems(write(tmp_path, "#" * 1_000_001))


def test_a_missing_file_is_a_mistake_of_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_spec(tmp_path / "nothing.yaml")


def test_the_shape_of_a_served_model_is_read_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    described = {"model_type": "fallow", "fallow": ModelConfig(layers=3).model_dump(mode="json")}
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    spec = load_spec(write(tmp_path, "kind: serve\nname: s\nserve: {model: model}\n"))
    assert spec.serve is not None
    assert spec.serve.shape == ModelConfig(layers=3)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "serve.model" in problems(write(tmp_path, "kind: serve\nname: s\nserve: {model: model}\n"))
