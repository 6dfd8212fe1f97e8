"""Training data by path and URL: what is read, and what is said of what cannot be."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import fsspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from fallow.specs import load_spec
from runtime.training.sources import DataError, keep_tokenizer_files, read_text, read_tokenizer, read_tokens
from runtime.training.text import load_corpus, train_tokenizer
from tests.training.undisturbed import tiny_spec

TEXT = "Nodes lie fallow until somebody asks. " * 60


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def test_json_lines_and_packed_files_and_urls_give_their_text(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"text": text, "id": 1}) for text in ("first", "zweites \u00e4")) + "\n\n"
    assert read_text(write(tmp_path / "a.jsonl", lines.encode())) == "first\n\nzweites \u00e4"
    assert read_text(write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))) == "first\n\nzweites \u00e4"
    assert read_text(write(tmp_path / "a.txt.gz", gzip.compress(b"plain"))) == "plain"
    with fsspec.open("memory://folder/a.txt", "wb") as file:
        file.write(b"by URL")
    assert read_text("memory://folder/a.txt") == "by URL"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', "line 2 is not an object"),
        ("a.jsonl", b"{\n", "line 1 is not an object"),
        ("a.txt.gz", b"not packed", "cannot be read"),
        ("a.jsonl", b"\n", "the file is empty"),
    ],
)
def test_what_is_wrong_with_text_is_said(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text(write(tmp_path / name, content))


def test_a_missing_file_and_an_unknown_scheme_are_said() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_text("/nowhere/at/all.txt")
    with pytest.raises(DataError, match="nosuch"):
        read_text("nosuch://bucket/a.txt")


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def test_token_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    data, known = save(tmp_path / "a.npy", np.arange(90, dtype=np.int32)), train_tokenizer(TEXT, 300).to_str()
    corpus = load_corpus(data, 300, 16, tmp_path / "data", known)
    assert list(corpus.tokens) == list(range(90))
    assert corpus.tokens.dtype == np.uint16
    with pytest.raises(DataError, match=r"give train\.tokenizer"):
        load_corpus(data, 300, 16, tmp_path / "other")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2), dtype=np.int64), "flat array of integers"),
        (np.zeros(3), "flat array of integers"),
        (np.array([1, 300]), r"from 1 to 300, but model.vocab_size is 300"),
        (np.array([-1, 3]), "from -1 to 3"),
    ],
)
def test_what_is_wrong_with_token_ids_is_said(tmp_path: Path, array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_tokens(save(tmp_path / "a.npy", array), 300)
    (tmp_path / "b.npy").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"b\.npy: not a NumPy file"):
        read_tokens(str(tmp_path / "b.npy"), 300)


def test_a_given_tokenizer_is_used_and_goes_with_the_model(tmp_path: Path) -> None:
    folder, output = tmp_path / "tokenizer", tmp_path / "model"
    folder.mkdir()
    output.mkdir()
    tokenizer = train_tokenizer(TEXT, 280)
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    known = read_tokenizer(str(folder), 300)
    corpus = load_corpus(write(tmp_path / "a.txt", TEXT.encode()), 300, 16, tmp_path / "data", known)
    assert Tokenizer.from_str(corpus.tokenizer_json).decode([int(t) for t in corpus.tokens]) == TEXT
    (output / "tokenizer.json").write_text(corpus.tokenizer_json)
    (output / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    keep_tokenizer_files(str(folder), output)
    assert json.loads((output / "config.json").read_text()) == {"eos_token_id": tokenizer.token_to_id("<end>")}
    with pytest.raises(DataError, match=r"but model\.vocab_size is 100: raise it"):
        read_tokenizer(str(folder), 100)
    with pytest.raises(DataError, match="give the folder of a fast tokenizer"):
        read_tokenizer(str(tmp_path / "nowhere"), 100)


def test_urls_stay_what_they_are_when_paths_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    part = load_spec(tiny_spec(data="s3://bucket/a.jsonl", tokenizer="tok", eval_data="e.txt", eval_every=5)).train
    assert (part.data, part.tokenizer, part.eval_data) == (
        "s3://bucket/a.jsonl",
        f"{tmp_path}/tok",
        f"{tmp_path}/e.txt",
    )
    assert part.start is None
