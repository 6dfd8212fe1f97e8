"""Counts of published models against the figures that their makers give, and folders' own words for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from protocol.jobspec import InvalidSpec, parse
from protocol.models import PRESETS, ModelConfig
from runtime.moe.description import describe
from runtime.moe.shapes import dense_shapes

# billions of parameters, all and active, as published; two digits after the point where the makers give them
PUBLISHED = {
    "mixtral-8x7b": (46.7, 12.9),
    "qwen3-30b-a3b": (30.5, 3.3),
    "olmoe-1b-7b": (6.92, 1.28),
    "deepseek-v3": (671.0, 37.0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_counts(name: str) -> None:
    total, active = PUBLISHED[name]
    assert PRESETS[name].parameters / 1e9 == pytest.approx(total, rel=0.002)
    assert PRESETS[name].active_parameters / 1e9 == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", PRESETS)
def test_dense_parameters_are_the_shapes_that_a_folder_must_have(name: str) -> None:
    config, count = PRESETS[name], 0
    for parameter, shape in dense_shapes(config).items():
        size = 1
        for length in shape:
            size *= length
        count += 0 if parameter.endswith("e_score_correction_bias") else size
    assert count == config.dense_parameters


# config.json as their makers publish them, shortened to what bears on the architecture
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        "attention_bias": False,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 129280,
    },
    "yuan2-m32": {
        "model_type": "yuan",
        "attention_projection_size": 4096,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "moe_config": {"ffn_hidden_size": 8192, "moe_num_experts": 32, "moe_top_k": 2, "gated_linear_unit": True},
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "rms_norm_eps": 1e-06,
        "vocab_size": 135040,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_config_files_describe_the_presets(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    found, preset = describe(tmp_path).config, PRESETS[name]
    derived = {"head_size", "kv_heads"}
    assert found.model_dump(exclude=derived) == preset.model_dump(exclude=derived)
    assert found.parameters == preset.parameters


def test_a_nested_shape_survives_a_spec_and_json() -> None:
    preset = PRESETS["deepseek-v3"]
    assert ModelConfig.model_validate_json(preset.model_dump_json()) == preset
    spec = parse({"kind": "serve", "name": "s", "serve": {"model": "m", "shape": preset.model_dump(mode="json")}})
    assert spec.serve is not None
    assert spec.serve.shape == preset


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense_layers": 4, "dense_size": 64}, "dense_layers"),
        ({"expert_kind": "clamped"}, "expert_kind"),
    ],
)
def test_what_training_cannot_train_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse({"kind": "train", "name": "t", "train": {"output": "o", "model": fields}})
    assert message in "\n".join(caught.value.problems)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dense_layers": 5, "dense_size": 8}, "only 4 layers"),
        ({"dense_layers": 1}, "dense_size is 0"),
        ({"shared_gate": True}, "give shared_size"),
        ({"router": "top_k", "expert_groups": 3}, "must be a multiple of expert_groups"),
        ({"router": "top_k", "expert_groups": 4, "experts_per_token": 3}, "a token's groups have 2"),
        ({"expert_groups": 2}, "neither a bias nor groups"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**fields)
