"""Training data: text to tokens, once, and then batches that are functions of (seed, step, sample) alone."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from runtime.moe.tokenizer_files import END_OF_TEXT
from runtime.training.sources import PYDOC, DataError, is_tokenised, read_text, read_tokens

SMALLEST_VOCABULARY = 257
"""Every byte, and the end of text."""
CHUNK_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class Corpus:
    """Tokenised text, mapped into memory from the job's own copy."""

    tokens: np.ndarray
    tokenizer_json: str
    key: str  # hash of the tokens and of what made them

    def __len__(self) -> int:
        return len(self.tokens)


def load_corpus(data: str, vocab_size: int, sequence_length: int, folder: Path, tokenizer_json: str = "") -> Corpus:
    """The tokens of `data`, from `folder` if they were made before. Raises `DataError`.

    Without a tokenizer, one is trained on the text. A job reads its source once: workers that join later take the
    tokens, so the file may have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "corpus.json"
        if not made.exists():
            _make(data, vocab_size, folder, tokenizer_json)
    about = json.loads(made.read_text())
    tokens = np.memmap(folder / about["tokens"], dtype=about["dtype"], mode="r")
    if len(tokens) < sequence_length + 1:
        raise DataError(
            f"{_name(data)}: only {len(tokens)} tokens, too short for a sequence of {sequence_length}: "
            "give more text or lower sequence_length"
        )
    return Corpus(tokens, (folder / "tokenizer.json").read_text(encoding="utf-8"), about["key"])


def train_tokenizer(text: str, vocab_size: int) -> Tokenizer:
    """Byte-level BPE trained on the text: no character of any language is unknown. Token 0 ends a text."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise DataError(f"model.vocab_size is {vocab_size}: a byte-level tokenizer needs {SMALLEST_VOCABULARY} or more")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_chunks(text), trainer)
    return tokenizer


def _make(data: str, vocab_size: int, folder: Path, tokenizer_json: str) -> None:
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    if is_tokenised(data):
        if not tokenizer_json:
            raise DataError(f"{data}: token ids need the tokenizer that made them: give train.tokenizer")
        tokens = read_tokens(data, vocab_size).astype(dtype)
    else:
        text = read_text(data)
        tokenizer = Tokenizer.from_str(tokenizer_json) if tokenizer_json else train_tokenizer(text, vocab_size)
        tokenizer_json = tokenizer.to_str()
        parts = tokenizer.encode_batch(list(_chunks(text)), add_special_tokens=False)
        tokens = np.concatenate([np.asarray(part.ids, dtype=dtype) for part in parts])
    key = hashlib.sha256(f"{tokenizer_json}/".encode() + tokens.tobytes()).hexdigest()[:16]
    _replace(folder / f"{key}.tokens", tokens.tobytes())
    _replace(folder / "tokenizer.json", tokenizer_json.encode())
    about = {"tokens": f"{key}.tokens", "dtype": np.dtype(dtype).name, "key": key}
    _replace(folder / "corpus.json", json.dumps(about).encode())


def _chunks(text: str) -> Iterator[str]:
    """Pieces of whole lines (a line longer than a piece is cut)."""
    start = 0
    while start < len(text):
        end = start + CHUNK_CHARACTERS
        newline = text.rfind("\n", start, end)
        end = newline + 1 if newline > start and end < len(text) else end
        yield text[start:end]
        start = end


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _name(data: str) -> str:
    return "the documentation inside Python" if data == PYDOC else data


@dataclass(frozen=True)
class Batches:
    """Samples of a corpus. Sample `index` of step `step` is the same at any width and in any process."""

    corpus: Corpus
    seed: int
    sequence_length: int

    def rows(self, step: int, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop` of a step: token ids (stop - start, sequence_length + 1)."""
        span = self.sequence_length + 1
        windows = [sample_start(self.seed, step, i, len(self.corpus) - span + 1) for i in range(start, stop)]
        rows = np.empty((len(windows), span), dtype=np.int64)
        for row, at in zip(rows, windows, strict=True):
            row[:] = self.corpus.tokens[at : at + span]
        return torch.from_numpy(rows)


def sample_start(seed: int, step: int, index: int, places: int) -> int:
    """Where a sample begins, in [0, places)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % places


def share(global_batch: int, width: int, rank: int) -> tuple[int, int]:
    """The samples [start, stop) of a worker: consecutive, in rank order, sizes differing by at most one."""
    return global_batch * rank // width, global_batch * (rank + 1) // width
