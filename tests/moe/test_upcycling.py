"""A dense model with its blocks copied into experts says what the dense model says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from protocol.models import ModelConfig
from runtime.moe.__main__ import main
from runtime.moe.cache import SequenceCache
from runtime.moe.checkpoint import DamagedCheckpoint, ModelFolder
from runtime.moe.description import examine
from runtime.moe.upcycling import upcycle
from tests.moe.hf_models import saved

DENSE = ["llama", "llama biases, linear", "qwen2", "qwen3", "mistral"]


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    examine(folder)
    with ModelFolder(folder) as opened:
        model, experts = opened.dense_model(), opened.experts()
    caches = [SequenceCache(model.config) for _ in range(2)]
    rows = [torch.arange(17), torch.arange(40, 45)]
    first = model.extend(rows, caches, experts)
    return torch.cat((first, model.extend([torch.tensor([7])] * 2, caches, experts)))


@pytest.mark.parametrize("name", DENSE)
def test_the_output_is_the_dense_models(name: str, tmp_path: Path) -> None:
    saved(name, tmp_path / "dense")
    (tmp_path / "dense" / "tokenizer.json").write_text("{}")
    config = upcycle(tmp_path / "dense", tmp_path / "routed", experts=5, active=2)
    assert (config.expert_layers, config.experts, config.expert_size) == (2, 5, 48)
    assert torch.allclose(logits(tmp_path / "routed"), logits(tmp_path / "dense"), atol=1e-5)
    assert (tmp_path / "routed" / "tokenizer.json").read_text() == "{}"


def test_every_token_has_a_choice_of_its_own(tmp_path: Path) -> None:
    saved("llama", tmp_path / "dense")
    upcycle(tmp_path / "dense", tmp_path / "routed", experts=6, active=2, seed=3)
    with ModelFolder(tmp_path / "routed") as opened:
        router = opened.dense_model().model.layers[0].mlp.gate
    ids, weights = router(torch.randn(50, 32, generator=torch.Generator().manual_seed(0)))
    assert len(set(ids.flatten().tolist())) == 6
    assert torch.allclose(weights.sum(1), torch.ones(50))


def test_end_tokens_are_the_sources(tmp_path: Path) -> None:
    saved("mistral", tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [5, 6]}))
    upcycle(tmp_path / "dense", tmp_path / "routed")
    assert json.loads((tmp_path / "routed" / "config.json").read_text())["eos_token_id"] == [5, 6]


def test_transformers_reads_an_upcycled_llama(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = saved("mistral", tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": None}))
    upcycle(tmp_path / "dense", tmp_path / "routed", experts=4)
    routed = AutoModelForCausalLM.from_pretrained(tmp_path / "routed")
    assert type(routed).__name__ == "MixtralForCausalLM"
    with torch.no_grad():  # seven tokens, so that the source's window hides none
        assert torch.allclose(routed(torch.arange(7)[None]).logits, theirs(torch.arange(7)[None]).logits, atol=1e-4)


def test_a_model_with_experts_and_impossible_counts_are_refused(tmp_path: Path) -> None:
    saved("mixtral", tmp_path / "routed")
    saved("llama", tmp_path / "dense")
    with pytest.raises(DamagedCheckpoint, match="has experts already"):
        upcycle(tmp_path / "routed", tmp_path / "again")
    with pytest.raises(ValueError, match="experts_per_token is 3 but there are only 2"):
        upcycle(tmp_path / "dense", tmp_path / "out", experts=2, active=3)
    assert not (tmp_path / "again").exists()
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved("qwen3", tmp_path / "dense")
    assert main(["upcycle", str(tmp_path / "dense"), str(tmp_path / "routed"), "--experts", "3"]) == 0
    assert main(["inspect", str(tmp_path / "routed")]) == 0
    found = json.loads(capsys.readouterr().out)
    config = ModelConfig.model_validate_json(json.dumps(found["config"]))
    assert found["experts"] == 6
    assert found["parameters"] == config.parameters
    assert main(["upcycle", str(tmp_path / "routed"), str(tmp_path / "x")]) == 4
    assert "has experts already" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere")]) == 4
    assert "config.json" in capsys.readouterr().err
