"""Models that are written as `transformers` knows them: it loads them and computes the logits of the one it made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from protocol.models import PRESETS, ModelConfig
from runtime.moe.checkpoint import ModelFolder, write_folder
from runtime.moe.description import examine
from runtime.moe.export import config_json, family_for
from runtime.moe.layout import ConfigJson
from runtime.training.text import train_tokenizer
from tests.moe.hf_models import VARIANTS, saved

WRITTEN = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3")
SAME = [
    name for name in VARIANTS if name.split()[0] in WRITTEN and not {"yarn", "yarn,", "sliding"} & set(name.split())
]


@pytest.mark.parametrize("variant", SAME)
def test_transformers_gives_the_logits_of_the_model_that_was_read(variant: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = saved(variant, tmp_path / "theirs")
    with ModelFolder(tmp_path / "theirs") as opened:
        config, model, experts = opened.config, opened.dense_model(), opened.experts()
    tokenizer = train_tokenizer("Nodes lie fallow. ", 300).to_str()
    write_folder(tmp_path / "ours", model, experts, tokenizer)
    assert examine(tmp_path / "ours").config == config
    again, told = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(again) is type(theirs)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    ids = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(again.eval()(ids).logits, theirs(ids).logits, atol=1e-4)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_family_that_is_chosen_reads_the_model_back(name: str) -> None:
    config = PRESETS[name]
    written = json.loads(json.dumps(config_json(config)))
    assert written["model_type"] == family_for(config).kind
    assert ModelConfig.model_validate(written.pop("fallow")) == config
    if written["model_type"] in WRITTEN:
        found = family_for(config).read(ConfigJson(Path("config.json"), written))
        assert (found.parameters, found.active_parameters) == (config.parameters, config.active_parameters)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_fraction": 0.5},
        {"shared_size": 24},  # Mixtral has none, and Qwen2's has a gate
        {"dense_layers": 1, "dense_size": 40},
        {"router": "sigmoid_bias"},
    ],
)
def test_what_no_family_has_is_written_as_fallows_own(changes: dict[str, object]) -> None:
    fields = {"router": "top_k", "localised_filtering": False, "rotary_fraction": 1.0}
    assert family_for(ModelConfig(**fields)).kind == "mixtral"
    assert family_for(ModelConfig(**{**fields, **changes})).kind == "fallow"
