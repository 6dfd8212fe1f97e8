"""Text that appears token by token: the pieces are whole characters and join to the whole text."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.serving.text import BadPrompt, Detokenizer, StopStrings, TextCodec, TokenizerMissing
from tests.serving.models import byte_tokenizer

TOKENIZER = byte_tokenizer()
CODEC = TextCodec(TOKENIZER, "", {}, ())
texts = st.text(alphabet=st.sampled_from("ab 节点闲置🙂🚜é\n.,🏳️‍🌈中文"), max_size=60)


@given(texts)
def test_pieces_join_to_the_text_and_are_whole_characters(text: str) -> None:
    detokenizer = Detokenizer(CODEC)
    pieces = [detokenizer.push(token) for token in CODEC.encode(text)]
    assert all("�" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


@given(st.lists(st.integers(0, TOKENIZER.get_vocab_size() - 1), max_size=80))
def test_pieces_join_to_the_text_of_any_tokens(tokens: list[int]) -> None:
    detokenizer = Detokenizer(CODEC)
    text = "".join(detokenizer.push(token) for token in tokens) + detokenizer.flush()
    assert text == CODEC.decode(tokens)


def test_a_characters_first_bytes_are_held_until_it_is_whole() -> None:
    tokens = CODEC.encode("🦀")  # not in the training text: several tokens of single bytes
    assert len(tokens) > 1
    detokenizer = Detokenizer(CODEC)
    assert [detokenizer.push(token) for token in tokens] == [""] * (len(tokens) - 1) + ["🦀"]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    detokenizer = Detokenizer(CODEC)
    assert detokenizer.push(CODEC.encode("🦀")[0]) == ""
    assert detokenizer.flush() == "�"


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_text_is_cut_at_the_first_stop_string_however_it_arrives(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    edges = [0, *cuts, len(text)]
    cutter = StopStrings(tuple(stops))
    shown = "".join(cutter.push(text[a:b]) for a, b in pairwise(edges)) + cutter.flush()
    if not any(stop in text for stop in stops):
        assert shown == text
        return
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    assert any(text.startswith(stop, len(shown)) for stop in stops)


def _folder(tmp_path: Path, **files: object) -> Path:
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_str())
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name.replace("__", ".")).write_text(text)
    return tmp_path


def test_a_chat_template_of_the_folder_is_used(tmp_path: Path) -> None:
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    settings = {"chat_template": template, "bos_token": {"content": "<|endoftext|>"}, "eos_token": "<|endoftext|>"}
    codec = TextCodec.from_folder(_folder(tmp_path, tokenizer_config__json=settings))
    assert codec.render([{"role": "user", "content": "你好"}]) == "<|endoftext|><user>你好<assistant>"
    assert codec.stop_ids == (0,)


def test_a_template_that_refuses_is_the_clients_fault(tmp_path: Path) -> None:
    template = "{% if messages|length > 1 %}{{ raise_exception('one message only') }}{% endif %}x"
    codec = TextCodec.from_folder(_folder(tmp_path, chat_template__jinja=template))
    with pytest.raises(BadPrompt, match="one message only"):
        codec.render([{"role": "user", "content": "a"}] * 2)


def test_without_a_template_a_plain_one_serves(tmp_path: Path) -> None:
    codec = TextCodec.from_folder(_folder(tmp_path, generation_config__json={"eos_token_id": [1, 2]}))
    assert codec.render([{"role": "user", "content": "hi"}]) == "user: hi\nassistant:"
    assert codec.stop_ids == (1, 2)


@pytest.mark.parametrize("content", [None, "{}", "not json"])
def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerMissing, match=r"tokenizer\.json"):
        TextCodec.from_folder(tmp_path)
