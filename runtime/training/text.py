"""Training data: text to tokens, once, and then batches that are functions of (seed, step, sample) alone."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO
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


class Corpus:
    """Tokenised text in a file of the job's own.

    It is read and not mapped into memory: a read beyond the end of a file that shrank says so, and of a mapped one
    the kernel would end the process.
    """

    def __init__(self, origin: Origin, path: Path, dtype: str, size: int, tokenizer_json: str) -> None:
        self._origin, self._path, self._dtype, self._size = origin, path, np.dtype(dtype), size
        self.tokenizer_json = tokenizer_json
        self._file: FileIO = path.open("rb", buffering=0)

    @property
    def key(self) -> str:
        """Hash of the tokens and of what made them."""
        return self._path.stem

    @property
    def tokens(self) -> np.ndarray:
        """All of them."""
        return self.read(0, self._size)

    def __len__(self) -> int:
        return self._size

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some of them, start <= stop <= size. A file that shrank is mended, or `DataError` is raised."""
        tokens = np.empty(stop - start, dtype=self._dtype)
        if not self._fill(tokens, start):
            self._origin.mend(self._path, self._size * self._dtype.itemsize, self.tokenizer_json)
            self._file = self._path.open("rb", buffering=0)
            if not self._fill(tokens, start):
                raise DataError(f"{self._path}: shrinks again and again: what else writes to this job's folder?")
        return tokens

    def _fill(self, tokens: np.ndarray, start: int) -> bool:
        return _read_at(self._file.fileno(), tokens, start * self._dtype.itemsize) == tokens.nbytes


def _read_at(file: int, into: np.ndarray, offset: int) -> int:
    """Bytes read; fewer than wanted only at the file's end."""
    view, done = memoryview(into).cast("B"), 0
    while done < len(view):
        count = os.preadv(file, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


@dataclass(frozen=True)
class Origin:
    """What a corpus is made from."""

    data: str
    vocab_size: int
    folder: Path
    warn: Callable[[str], None] = lambda _: None

    def mend(self, path: Path, size_bytes: int, tokenizer_json: str) -> None:
        """Make the tokens again that `path` has lost. Raises `DataError` if the source no longer gives the same."""
        with _alone(self.folder):
            if path.exists() and path.stat().st_size == size_bytes:
                return  # another worker has done it
            there = path.stat().st_size if path.exists() else 0
            told = f"{path}: shrank to {there} of {size_bytes} bytes"
            try:
                made = tokenise(self.data, self.vocab_size, tokenizer_json)
            except DataError as error:
                raise DataError(f"{told}, and cannot be made again: {error}") from error
            if made.key != path.stem:
                raise DataError(f"{told}, and {_name(self.data)} has changed since: put back either of them")
            _replace(path, made.tokens.tobytes())
        self.warn(f"{told} and was made again from {_name(self.data)}")


def load_corpus(
    data: str,
    vocab_size: int,
    sequence_length: int,
    folder: Path,
    tokenizer_json: str = "",
    warn: Callable[[str], None] = lambda _: None,
) -> Corpus:
    """The tokens of `data`, from `folder` if they were made before. Raises `DataError`.

    Without a tokenizer, one is trained on the text. A job reads its source once: workers that join later take the
    tokens, so the file may have changed since. `warn` is told what had to be mended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "corpus.json"
    with _alone(folder):
        if not made.exists():
            _keep(tokenise(data, vocab_size, tokenizer_json), folder)
    about = json.loads(made.read_text())
    size, dtype = about["size"], np.dtype(about["dtype"])
    path, known = folder / about["tokens"], (folder / "tokenizer.json").read_text(encoding="utf-8")
    origin = Origin(data, vocab_size, folder, warn)
    origin.mend(path, size * dtype.itemsize, known)
    if size < sequence_length + 1:
        raise DataError(
            f"{_name(data)}: only {size} tokens, too short for a sequence of {sequence_length}: "
            "give more text or lower sequence_length"
        )
    return Corpus(origin, path, dtype.name, size, known)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other worker of the job makes tokens meanwhile."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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


@dataclass(frozen=True)
class Tokenised:
    """Text as tokens, and the tokenizer that made them."""

    tokens: np.ndarray
    tokenizer_json: str

    @property
    def key(self) -> str:
        """Hash of both."""
        return hashlib.sha256(f"{self.tokenizer_json}/".encode() + self.tokens.tobytes()).hexdigest()[:16]


def tokenise(data: str, vocab_size: int, tokenizer_json: str = "") -> Tokenised:
    """Read `data`, train a tokenizer if none is given, and turn text into tokens. Raises `DataError`."""
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    if is_tokenised(data):
        if not tokenizer_json:
            raise DataError(f"{data}: token ids need the tokenizer that made them: give train.tokenizer")
        return Tokenised(read_tokens(data, vocab_size).astype(dtype), tokenizer_json)
    text = read_text(data)
    tokenizer = Tokenizer.from_str(tokenizer_json) if tokenizer_json else train_tokenizer(text, vocab_size)
    parts = tokenizer.encode_batch(list(_chunks(text)), add_special_tokens=False)
    tokens = np.concatenate([np.asarray(part.ids, dtype=dtype) for part in parts])
    return Tokenised(tokens, tokenizer.to_str())


def _keep(made: Tokenised, folder: Path) -> None:
    _replace(folder / f"{made.key}.tokens", made.tokens.tobytes())
    _replace(folder / "tokenizer.json", made.tokenizer_json.encode())
    about = {"tokens": f"{made.key}.tokens", "dtype": made.tokens.dtype.name, "size": len(made.tokens)}
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
            row[:] = self.corpus.read(at, at + span)
        return torch.from_numpy(rows)


def sample_start(seed: int, step: int, index: int, places: int) -> int:
    """Where a sample begins, in [0, places)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % places


def share(global_batch: int, width: int, rank: int) -> tuple[int, int]:
    """The samples [start, stop) of a worker: consecutive, in rank order, sizes differing by at most one."""
    return global_batch * rank // width, global_batch * (rank + 1) // width
