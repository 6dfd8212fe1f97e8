"""Folders on disk: round trip, names, damage that is named, and transformers reading the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models

from protocol.models import ModelConfig
from runtime.moe.checkpoint import INDEX, DamagedCheckpoint, ModelFolder, read_config, write_folder
from tests.moe.test_model import SMALL, VARIANTS, lively

MIXTRAL = SMALL.model_copy(
    update={"router": "top_k", "localised_filtering": False, "rotary_fraction": 1.0, "kv_heads": 2}
)
TOKENIZER = Tokenizer(models.BPE(vocab={"<|endoftext|>": 0, "a": 1}, merges=[])).to_str()


def written(folder: Path, config: ModelConfig) -> tuple[Path, torch.Tensor]:
    model, experts = lively(config)
    write_folder(folder / "model", model, experts, TOKENIZER)
    return folder / "model", model(torch.arange(9)[None], experts)


@pytest.mark.parametrize("config", [*VARIANTS.values(), MIXTRAL])
def test_a_folder_reads_back_as_the_same_model(tmp_path: Path, config: ModelConfig) -> None:
    folder, logits = written(tmp_path, config)
    with ModelFolder(folder) as saved:
        assert saved.config == config
        again = saved.dense_model()(torch.arange(9)[None], saved.experts())
        assert torch.allclose(again, logits, atol=1e-5)  # mapped tensors take other kernels


def test_names_are_those_of_yuan(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, SMALL)
    names = set(json.loads((folder / INDEX).read_text())["weight_map"])
    for name in (
        "model.layers.0.mlp.gate.query.weight",
        "model.layers.1.mlp.experts.4.w1.weight",
        "model.layers.0.self_attn.lf_gate.conv2.bias",
        "model.layers.0.self_attn.lf_gate.output_layernorm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ):
        assert name in names
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["YuanForCausalLM"]


def test_query_and_key_lie_interleaved_as_yuan_reads_them(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, SMALL)
    model, _ = lively(SMALL)
    attention = model.model.layers[0].self_attn
    x = torch.randn(1, SMALL.hidden_size)
    with ModelFolder(folder) as saved:
        shape = (24, 24)
        q_proj, k_proj = (saved.tensor(f"model.layers.0.self_attn.{n}_proj.weight", shape) for n in "qk")
    mixed = torch.cat((x @ q_proj.T, x @ k_proj.T), dim=1).view(SMALL.heads, 2 * SMALL.attention_head_size)
    query, key = mixed.split(SMALL.attention_head_size, dim=1)
    assert torch.allclose(query.flatten(), attention.q_proj(x).flatten(), atol=1e-5)
    assert torch.allclose(key.flatten(), attention.k_proj(x).flatten(), atol=1e-5)


def test_an_older_folder_is_replaced_and_nothing_else_remains(tmp_path: Path) -> None:
    written(tmp_path, SMALL)
    folder, _ = written(tmp_path, MIXTRAL)
    assert read_config(folder) == MIXTRAL
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_missing_misshapen_and_truncated_tensors_are_named(tmp_path: Path) -> None:
    folder, _ = written(tmp_path, SMALL)
    with ModelFolder(folder) as saved:
        with pytest.raises(DamagedCheckpoint, match=r"tensor no\.such\.tensor is missing"):
            saved.tensor("no.such.tensor", (1,))
        with pytest.raises(DamagedCheckpoint, match=r"lm_head.weight has shape \(50, 24\), expected \(1, 1\)"):
            saved.tensor("lm_head.weight", (1, 1))
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with ModelFolder(folder) as saved, pytest.raises(DamagedCheckpoint, match=r"00002-of-00002.*experts\.0\.w1"):
        saved.expert((0, 0))
    shard.unlink()
    with ModelFolder(folder) as saved, pytest.raises(DamagedCheckpoint, match="00002-of-00002"):
        saved.expert((0, 0))


@pytest.mark.parametrize("content", [None, "{", "{}", '{"fallow": {"layers": 0}}', '{"fallow": 7}'])
def test_a_folder_without_a_valid_config_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=r"config\.json"):
        ModelFolder(tmp_path)


@pytest.mark.slow
def test_transformers_reads_a_mixtral_folder_and_gives_the_same_logits(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, logits = written(tmp_path, MIXTRAL)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        assert torch.allclose(theirs(torch.arange(9)[None]).logits[0], logits, atol=1e-3)
    assert AutoTokenizer.from_pretrained(folder).eos_token_id == 0
