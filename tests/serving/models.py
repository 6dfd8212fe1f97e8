"""Small random models in Hugging Face folders, with byte-level tokenizers trained on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from protocol.models import ModelConfig
from runtime.moe.cache import SequenceCache
from runtime.moe.checkpoint import ModelFolder, write_folder
from runtime.moe.experts import ExpertWeights
from runtime.moe.model import MoeModel, initial_experts, initialise_dense
from runtime.moe.tokenizer_files import END_OF_TEXT

CORPUS = [
    "The quick brown fox jumps over the lazy dog. " * 3,
    "闲置的超级计算机节点可以训练和服务混合专家模型。节点随时可能被收回。" * 3,
    "Fallow borrows idle nodes and hands them back 🙂🚜🌾 whenever their owner asks. " * 3,
]


def byte_tokenizer(vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE: any text is some tokens, and many a token is only part of a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_model(
    folder: Path, *, hidden: int = 64, layers: int = 2, experts: int = 8, seed: int = 0, filters: bool = True
) -> ModelConfig:
    """A random model, its weights spread wide enough that it does not say the same word for ever."""
    tokenizer = byte_tokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        layers=layers,
        heads=4,
        experts=experts,
        experts_per_token=2,
        expert_size=2 * hidden,
        localised_filtering=filters,
    )
    model = MoeModel(config)
    initialise_dense(model, seed)
    bank = initial_experts(config, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
        for key, weights in bank.experts.items():
            bank.experts[key] = ExpertWeights(*(matrix * 8 for matrix in weights))
    write_folder(folder, model, bank, tokenizer.to_str())
    return config


def greedy(folder: Path, prompt: list[int], count: int, dtype: torch.dtype = torch.float32) -> list[int]:
    """What the model says in one process, one token at a time, end tokens ignored: the reference."""
    with ModelFolder(folder, dtype) as opened:
        model, experts = opened.dense_model(), opened.experts()
    cache, said, part = SequenceCache(model.config, dtype=dtype), [], torch.tensor(prompt)
    for _ in range(count):
        token = int(model.extend([part], [cache], experts)[0].argmax())
        said.append(token)
        part = torch.tensor([token])
    return said
