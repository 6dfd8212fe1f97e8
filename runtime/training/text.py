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

PYDOC = "pydoc"
SMALLEST_VOCABULARY = 257
"""Every byte, and the end of text."""
CHUNK_CHARACTERS = 1 << 16


class DataError(ValueError):
    """The training data cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Corpus:
    """Tokenised text, mapped into memory from the job's own copy."""

    tokens: np.ndarray
    tokenizer_json: str
    key: str  # hash of the text and of how it was tokenised

    def __len__(self) -> int:
        return len(self.tokens)


def load_corpus(data: str, vocab_size: int, sequence_length: int, folder: Path) -> Corpus:
    """The tokenised text of `data`, from `folder` if it was made before. Raises `DataError`.

    A job reads its source once: workers that join later take the tokens, so the file may have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / "corpus.json"
        if not made.exists():
            _make(read_text(data), vocab_size, folder)
    about = json.loads(made.read_text())
    tokens = np.memmap(folder / about["tokens"], dtype=about["dtype"], mode="r")
    if len(tokens) < sequence_length + 1:
        raise DataError(
            f"{_name(data)}: only {len(tokens)} tokens, too short for a sequence of {sequence_length}: "
            "give more text or lower sequence_length"
        )
    return Corpus(tokens, (folder / "tokenizer.json").read_text(encoding="utf-8"), about["key"])


def read_text(data: str) -> str:
    """The text of a source: "pydoc" or the path of a UTF-8 file. Raises `DataError`."""
    if data == PYDOC:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        raw = Path(data).read_bytes()
    except OSError as error:
        raise DataError(f"{data}: cannot be read ({error.strerror}): give the path of a text file") from error
    try:
        text = raw.decode("utf-8", errors="strict")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{data}: not UTF-8 at byte {error.start} (0x{raw[error.start]:02x}): convert it, e.g. with iconv"
        ) from error
    if not text.strip():
        raise DataError(f"{data}: the file is empty: give a file with text")
    return text


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


def _make(text: str, vocab_size: int, folder: Path) -> None:
    key = hashlib.sha256(f"bpe-1/{vocab_size}/".encode() + text.encode()).hexdigest()[:16]
    tokenizer = train_tokenizer(text, vocab_size)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    tokens = np.concatenate([np.asarray(e.ids, dtype=dtype) for e in tokenizer.encode_batch(list(_chunks(text)))])
    _replace(folder / f"{key}.tokens", tokens.tobytes())
    _replace(folder / "tokenizer.json", tokenizer.to_str().encode())
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
