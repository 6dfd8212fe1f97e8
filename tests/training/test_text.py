"""Training data: what is refused and how, and samples that depend on (seed, step, index) alone."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from runtime.training.sources import DataError, read_text
from runtime.training.text import Batches, load_corpus, sample_start, share, train_tokenizer

CHINESE = "闲置的超级计算机节点在等待工作。我们借用它们训练混合专家模型，再按时归还。\n" * 40


def test_chinese_text_survives_the_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text(CHINESE, encoding="utf-8")
    corpus = load_corpus(str(source), 400, 16, tmp_path / "data")
    tokenizer = Tokenizer.from_str(corpus.tokenizer_json)
    assert tokenizer.decode([int(t) for t in corpus.tokens]) == CHINESE
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert max(corpus.tokens) < 400


def test_a_job_reads_its_source_once(tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    source.write_text(CHINESE, encoding="utf-8")
    first = load_corpus(str(source), 400, 16, tmp_path / "data")
    source.write_text("shrunk", encoding="utf-8")
    again = load_corpus(str(source), 400, 16, tmp_path / "data")
    assert (first.key, list(first.tokens)) == (again.key, list(again.tokens))


def test_tokens_that_shrank_are_made_again_from_their_source(tmp_path: Path) -> None:
    source, told = tmp_path / "text.txt", []
    source.write_text(CHINESE, encoding="utf-8")
    corpus = load_corpus(str(source), 400, 16, tmp_path / "data", warn=told.append)
    expected = list(corpus.tokens)
    (made,) = (tmp_path / "data").glob("*.tokens")
    os.truncate(made, 11)
    assert list(corpus.tokens) == expected
    os.truncate(made, 11)  # and for one that comes later
    joined = load_corpus(str(source), 400, 16, tmp_path / "data", warn=told.append)
    assert list(joined.tokens) == expected
    assert len(told) == 2
    assert f"{made}: shrank to 11 of {2 * len(expected)} bytes and was made again" in told[0]
    os.truncate(made, 11)
    source.write_text(CHINESE[1:], encoding="utf-8")
    with pytest.raises(DataError, match=r"\.tokens: shrank to 11 of .*text\.txt has changed since: put back either"):
        joined.read(0, len(joined))
    source.unlink()
    with pytest.raises(DataError, match=r"\.tokens: shrank .*cannot be made again: .*text\.txt: cannot be read"):
        joined.read(0, len(joined))


def test_bad_bytes_are_named_with_file_and_offset(tmp_path: Path) -> None:
    source = tmp_path / "latin.txt"
    source.write_bytes("Grü".encode() + "ße".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt: not UTF-8 at byte 4 \(0xdf\)"):
        read_text(str(source))


@pytest.mark.parametrize("content", ["", " \n\n"])
def test_an_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "empty.txt").write_text(content)
    with pytest.raises(DataError, match=r"empty\.txt: the file is empty"):
        read_text(str(tmp_path / "empty.txt"))


def test_a_missing_file_a_short_one_and_a_small_vocabulary_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: cannot be read \(No such file"):
        read_text(str(tmp_path / "none.txt"))
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(DataError, match=r"short\.txt: only \d+ tokens, too short for a sequence of 64"):
        load_corpus(str(tmp_path / "short.txt"), 300, 64, tmp_path / "data")
    with pytest.raises(DataError, match="vocab_size is 256"):
        train_tokenizer("text", 256)


@given(st.integers(1, 300), st.integers(1, 60))
def test_shares_cover_the_batch_in_order(global_batch: int, width: int) -> None:
    bounds = [share(global_batch, width, rank) for rank in range(width)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == global_batch
    assert all(left[1] == right[0] for left, right in pairwise(bounds))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**8), st.integers(0, 10**6), st.integers(1, 10**9))
def test_a_sample_is_somewhere_in_the_text(seed: int, step: int, index: int, places: int) -> None:
    assert 0 <= sample_start(seed, step, index, places) < places


def test_rows_do_not_depend_on_how_the_batch_is_split(tmp_path: Path) -> None:
    corpus = load_corpus("pydoc", 300, 16, tmp_path)
    batches = Batches(corpus, seed=7, sequence_length=16)
    whole = batches.rows(3, 0, 8)
    parts = [batches.rows(3, *share(8, 3, rank)) for rank in range(3)]
    assert [row for part in parts for row in part.tolist()] == whole.tolist()
    assert batches.rows(4, 0, 8).tolist() != whole.tolist()
    assert batches.rows(3, 5, 5).shape == (0, 17)
