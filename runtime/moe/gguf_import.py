"""From a GGUF file (llama.cpp's format, any of its number types) to a Hugging Face folder in fp32.

H heads, d head size, D hidden size.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from runtime.moe.description import examine
from runtime.moe.headers import SINGLE
from runtime.moe.layout import DamagedCheckpoint

_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_CONTROL, _USER_DEFINED = 3, 4


class _Fields:
    """The file's key-value pairs. Missing ones raise `DamagedCheckpoint`."""

    def __init__(self, path: Path, reader: GGUFReader) -> None:
        self._path, self._fields = path, reader.fields

    def get(self, name: str, default: Any = None) -> Any:
        return self._fields[name].contents() if name in self._fields else default

    def need(self, name: str) -> Any:
        if name not in self._fields:
            raise DamagedCheckpoint(f"{self._path}: field {name} is missing")
        return self._fields[name].contents()


def import_gguf(path: Path, folder: Path) -> None:
    """Write `folder` (config, weights, tokenizer, chat template), replacing an older one once the new one is whole.

    Raises `DamagedCheckpoint` naming what is wrong or not known.
    """
    try:
        reader = GGUFReader(path)
    except (OSError, ValueError, IndexError) as error:
        raise DamagedCheckpoint(f"{path}: not a whole GGUF file: {error}") from error
    fields = _Fields(path, reader)
    if fields.need("general.architecture") != "llama":
        raise DamagedCheckpoint(
            f"{path}: architecture {fields.need('general.architecture')!r} cannot be imported, only 'llama'"
        )
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = _tensors(path, reader, fields)
    save_file(tensors, partial / SINGLE, metadata={"format": "pt"})
    _write(partial / "config.json", _config(fields, tensors))
    _write_tokenizer(partial, path, fields)
    examine(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _tensors(path: Path, reader: GGUFReader, fields: _Fields) -> dict[str, Tensor]:
    heads = fields.need("llama.attention.head_count")
    counts = {"attn_q.weight": heads, "attn_k.weight": fields.get("llama.attention.head_count_kv", heads)}
    tensors = {}
    for stored in reader.tensors:
        layer = re.fullmatch(r"blk\.(\d+)\.(.+)", stored.name)
        name = layer[2] if layer else stored.name
        if name not in _NAMES:
            raise DamagedCheckpoint(f"{path}: tensor {stored.name} is none that a llama model is known to have")
        values = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy()).float()
        values = values.reshape([int(size) for size in reversed(stored.shape)])
        values = _halves(values, counts[name]) if name in counts else values
        tensors[f"model.layers.{layer[1]}.{_NAMES[name]}" if layer else _NAMES[name]] = values.contiguous()
    return tensors


def _halves(matrix: Tensor, heads: int) -> Tensor:
    """Rows of each head whose rotary pairs are neighbours, as llama.cpp has them, in halves, as `transformers` does."""
    return matrix.reshape(heads, -1, 2, matrix.shape[1]).transpose(1, 2).reshape(matrix.shape)


def _config(fields: _Fields, tensors: dict[str, Tensor]) -> dict[str, Any]:
    heads = fields.need("llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tensors["model.embed_tokens.weight"].shape[0],
        "hidden_size": fields.need("llama.embedding_length"),
        "intermediate_size": fields.need("llama.feed_forward_length"),
        "num_hidden_layers": fields.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": fields.get("llama.attention.head_count_kv", heads),
        "head_dim": fields.get("llama.rope.dimension_count"),
        "max_position_embeddings": fields.need("llama.context_length"),
        "rms_norm_eps": float(f"{fields.need('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # 1e-5 as 32 bits had it
        "rope_theta": fields.get("llama.rope.freq_base", 10_000.0),
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "torch_dtype": "float32",
        "bos_token_id": fields.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.get("tokenizer.ggml.eos_token_id"),
    }


def _write_tokenizer(folder: Path, path: Path, fields: _Fields) -> None:
    kind, splits = fields.need("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or splits not in ("gpt-2", "smollm"):
        raise DamagedCheckpoint(f"{path}: tokenizer {kind!r} / {splits!r} cannot be imported, only gpt2 / smollm")
    tokens = fields.need("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in fields.need("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if splits == "smollm" else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.get("tokenizer.ggml.token_type", [1] * len(tokens))
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == _CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (_CONTROL, _USER_DEFINED)
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {name: fields.get(f"tokenizer.ggml.{key}_token_id") for name, key in _SPECIAL.items()}
    settings = {name: tokens[id] for name, id in special.items() if id is not None}
    template = fields.get("tokenizer.chat_template")
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **settings,
            **({"chat_template": template} if template else {}),
        },
    )
    _write(folder / "generation_config.json", {"eos_token_id": special["eos_token"]})


_SPECIAL = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
