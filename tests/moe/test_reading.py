"""What folders may look like: shards, fused experts, 8-bit and 4-bit numbers; and what is refused, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from runtime.moe.arrangements import MXFP4_VALUES, eight_bit, four_bit
from runtime.moe.checkpoint import DamagedCheckpoint, ModelFolder
from runtime.moe.description import examine
from runtime.moe.headers import INDEX, SINGLE
from tests.moe.hf_models import saved


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one file; tests copy it before they break it."""
    folder = tmp_path_factory.mktemp("qwen")
    saved("qwen3_moe", folder)
    return folder


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    examine(folder)
    with ModelFolder(folder) as opened:
        return opened.dense_model()(torch.arange(12)[None], opened.experts())


def copied(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], Any]) -> Path:
    """A folder with other tensors or another config.json."""
    target.mkdir(exist_ok=True)
    tensors, config = load_file(source / SINGLE), json.loads((source / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, target / SINGLE)
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_many_shards_are_the_same_model(qwen: Path, tmp_path: Path) -> None:
    saved("qwen3_moe", tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert torch.allclose(logits(tmp_path), logits(qwen), atol=1e-5)


def test_nothing_is_drawn_for_what_is_then_read(qwen: Path) -> None:
    before = torch.random.get_rng_state()
    with ModelFolder(qwen) as opened:
        opened.dense_model()
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_worker_opens_only_the_files_that_hold_its_experts(tmp_path: Path) -> None:
    saved("qwen3_moe", tmp_path, max_shard_size="20KB")
    files = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    needed = {file for name, file in files.items() if ".layers.1.mlp.experts.5." in name}
    for file in set(files.values()) - needed:
        (tmp_path / file).unlink()
    with ModelFolder(tmp_path) as opened:
        assert opened.expert((1, 5)).w1.shape == (48, 32)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_experts_fused_into_one_tensor_a_layer(name: str, tmp_path: Path) -> None:
    model = saved(name, tmp_path / "separate")

    def fuse(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        tensors.clear()
        tensors.update({n: t.contiguous().clone() for n, t in model.state_dict().items()})
        assert any(n.endswith("experts.gate_up_proj") for n in tensors)

    fused = copied(tmp_path / "separate", tmp_path / "fused", fuse)
    assert torch.allclose(logits(fused), logits(tmp_path / "separate"), atol=1e-5)


def test_bfloat16_is_read_as_what_is_asked_for(qwen: Path, tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})

    folder = copied(qwen, tmp_path, halve)
    assert torch.allclose(logits(folder), logits(qwen), atol=0.2)
    with ModelFolder(folder, torch.bfloat16) as opened:
        assert opened.expert((0, 0)).w1.dtype == torch.bfloat16
        assert opened.dense_model().lm_head.weight.dtype == torch.bfloat16


def test_eight_bit_matrices_with_a_factor_per_block(tmp_path: Path) -> None:
    saved("deepseek_v3", tmp_path / "whole")

    def shrink(tensors: dict[str, torch.Tensor], _: dict[str, Any]) -> None:
        for name in [n for n in tensors if "_proj" in n]:
            factor = tensors[name].abs().max() / 400
            tensors[f"{name}_scale_inv"] = factor.reshape(1, 1)
            tensors[name] = (tensors[name] / factor).to(torch.float8_e4m3fn)

    folder = copied(tmp_path / "whole", tmp_path / "small", shrink)
    examine(folder)
    with ModelFolder(folder) as small, ModelFolder(tmp_path / "whole") as whole:
        for ours, theirs in zip(small.expert((0, 3)), whole.expert((0, 3)), strict=True):
            assert torch.allclose(ours, theirs, atol=0.05)
        name = "model.layers.0.self_attn.kv_b_proj.weight"
        ours, theirs = small.dense_model().get_parameter(name), whole.dense_model().get_parameter(name)
        assert torch.allclose(ours, theirs, atol=0.05)


def test_factors_reach_the_blocks_that_they_are_for() -> None:
    factors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    whole = eight_bit(torch.ones(200, 130), factors)
    assert [float(whole[r, c]) for r, c in ((0, 0), (127, 128), (128, 127), (199, 129))] == [1, 2, 3, 4]


def test_four_bit_experts_of_gpt_oss(tmp_path: Path) -> None:
    folder, generator = tmp_path / "four", torch.Generator().manual_seed(0)
    saved("gpt_oss", tmp_path / "whole")
    wide = {"hidden_size": 64, "intermediate_size": 32}
    config = json.loads((tmp_path / "whole" / "config.json").read_text()) | wide
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    prefix = "model.layers.1.mlp.experts"
    blocks = {"gate_up_proj": (4, 64, 2, 16), "down_proj": (4, 64, 1, 16)}
    tensors = {
        f"{prefix}.{n}_blocks": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        for n, shape in blocks.items()
    }
    tensors |= {
        f"{prefix}.{n}_scales": torch.randint(120, 130, shape[:3], generator=generator, dtype=torch.uint8)
        for n, shape in blocks.items()
    }
    tensors |= {f"{prefix}.gate_up_proj_bias": torch.randn(4, 64), f"{prefix}.down_proj_bias": torch.randn(4, 64)}
    tensors["model.layers.0.mlp.experts.gate_up_proj_blocks"] = torch.zeros(1)  # says how experts lie here
    save_file(tensors, folder / SINGLE)
    with ModelFolder(folder) as opened:
        expert = opened.expert((1, 2))
    byte, power = (
        int(tensors[f"{prefix}.gate_up_proj_blocks"][2, 3, 1, 4]),
        int(tensors[f"{prefix}.gate_up_proj_scales"][2, 3, 1]),
    )
    # row 3 is the second value (of the pairs gate, value); byte 4 of block 1 holds columns 40 and 41
    assert float(expert.w1[32 + 1, 40]) == MXFP4_VALUES[byte & 15] * 2.0 ** (power - 127)
    assert float(expert.w1[32 + 1, 41]) == MXFP4_VALUES[byte >> 4] * 2.0 ** (power - 127)
    assert torch.equal(expert.b1[:32], tensors[f"{prefix}.gate_up_proj_bias"][2, 0::2])
    assert expert.w2.shape == (64, 32)


def test_four_bit_numbers_are_those_of_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(0, 256, (3, 6, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(110, 135, (3, 6, 2), generator=generator, dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    ours = torch.stack([four_bit(b, s) for b, s in zip(blocks, scales, strict=True)])
    assert torch.equal(ours, theirs.transpose(1, 2) if theirs.shape != ours.shape else theirs)


# --- refused ---------------------------------------------------------------------------------------------------

Q = "model.layers.1.self_attn.q_proj.weight"
BROKEN: dict[str, tuple[Callable[[dict[str, torch.Tensor], dict[str, Any]], Any], str]] = {
    "unknown": (lambda t, c: c.update(model_type="gpt2"), r"model_type is 'gpt2', which Fallow does not run; it runs"),
    "no kind": (lambda t, c: c.pop("model_type"), r"model_type is None"),
    "missing": (lambda t, c: t.pop(Q), rf"tensor {Q} \(48, 32\) is missing"),
    "missing expert": (
        lambda t, c: t.pop("model.layers.1.mlp.experts.7.up_proj.weight"),
        r"experts\.7\.up_proj\.weight \(24, 32\) is missing",
    ),
    "misshapen": (lambda t, c: t.update({Q: t[Q][:-1].clone()}), rf"{Q} has shape \(47, 32\), config.json asks for"),
    "fewer layers": (lambda t, c: c.update(num_hidden_layers=1), r"tensor model\.layers\.1\.\S+ has no place"),
    "more layers": (lambda t, c: c.update(num_hidden_layers=3), r"tensor model\.layers\.2\.\S+ .* is missing"),
    "fewer experts": (lambda t, c: c.update(num_local_experts=4), r"gate\.weight has shape \(8, 32\)"),
    "wrong vocabulary": (lambda t, c: c.update(vocab_size=61), r"embed_tokens\.weight has shape \(60, 32\)"),
    "other activation": (lambda t, c: c.update(hidden_act="gelu"), r'hidden_act is "gelu"'),
    "sparse steps": (lambda t, c: c.update(decoder_sparse_step=2), r"decoder_sparse_step is 2"),
    "unknown rope": (
        lambda t, c: c.update(rope_parameters={"rope_type": "longrope", "factor": 2.0}),
        r"rope_scaling is of type 'longrope'",
    ),
    "broken rope": (lambda t, c: c.update(rope_parameters={"rope_type": "llama3", "factor": 2}), "low_freq_factor"),
    "no sizes": (lambda t, c: c.pop("hidden_size"), r"hidden_size is missing"),
    "text for a number": (lambda t, c: c.update(num_hidden_layers="2"), r"num_hidden_layers is '2', expected a whole"),
    "too many chosen": (lambda t, c: c.update(num_experts_per_tok=9), r"experts_per_token is 9"),
    "stray": (
        lambda t, c: t.update({"model.extra.weight": torch.ones(1)}),
        r"tensor model\.extra\.weight has no place",
    ),
    "stray bias": (
        lambda t, c: t.update({Q.replace("weight", "bias"): torch.ones(48)}),
        r"q_proj\.bias has no place",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_folder_that_contradicts_itself_is_refused_by_name(case: str, qwen: Path, tmp_path: Path) -> None:
    change, message = BROKEN[case]
    folder = copied(qwen, tmp_path, change)
    with pytest.raises(DamagedCheckpoint, match=message):
        examine(folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -100])
def test_a_truncated_file_is_refused_by_name(kept: int, qwen: Path, tmp_path: Path) -> None:
    folder = copied(qwen, tmp_path, lambda tensors, config: None)
    (folder / SINGLE).write_bytes(
        (qwen / SINGLE).read_bytes()[: kept or 0] if kept >= 0 else (qwen / SINGLE).read_bytes()[:kept]
    )
    with pytest.raises(DamagedCheckpoint, match=r"model\.safetensors: (cut off|not a safetensors file)"):
        examine(folder)


def test_an_index_that_names_what_is_not_there_or_elsewhere(tmp_path: Path, qwen: Path) -> None:
    saved("qwen3_moe", tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(f for f in index["weight_map"].values() if f != file)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {**index["weight_map"], name: other}}))
    with pytest.raises(DamagedCheckpoint, match=rf"{other}: tensor {name} is missing"):
        examine(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {name: "../elsewhere.safetensors"}}))
    with pytest.raises(DamagedCheckpoint, match="not in the folder itself"):
        examine(tmp_path)
    (tmp_path / INDEX).unlink()
    with pytest.raises(DamagedCheckpoint, match=INDEX):
        examine(tmp_path)
