"""What has been computed once need not be computed again, and what was handed over is what it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.moe.cache import SequenceCache
from runtime.moe.checkpoint import ModelFolder
from runtime.serving import wire
from runtime.serving.engine import Engine
from runtime.serving.handover import decode_page, encode_page
from runtime.serving.pages import PAGE, Pages, names
from runtime.serving.params import SamplingParams
from runtime.serving.sequences import Sequence, StepScheduler
from tests.serving.models import greedy, write_model


class Running:
    """An engine over a folder, its experts in this process."""

    def __init__(self, folder: Path, cache_tokens: int = 4096, step_tokens: int = 48) -> None:
        with ModelFolder(folder) as opened:
            model, experts = opened.dense_model(), opened.experts()
        config = model.config
        self.pages = Pages(lambda n: SequenceCache(config, n), cache_tokens, config.localised_filtering)
        scheduler = StepScheduler(4, step_tokens, cache_tokens, self.pages.open)
        self.engine = Engine(model, experts, scheduler, self.pages)
        self.computed = 0

    def say(self, prompt: list[int], count: int, emitted: tuple[int, ...] = ()) -> list[int]:
        sequence = Sequence("a", tuple(prompt), SamplingParams(count), list(emitted))
        self.engine.scheduler.add(sequence)
        hits = self.pages.hits
        while len(sequence.emitted) < count:
            self.engine.step()
        self.computed = sequence.length - 1 - (self.pages.hits - hits)
        return sequence.emitted


@pytest.fixture(scope="module", params=[True, False], ids=["filters", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "m"
    write_model(path, hidden=32, experts=4, filters=request.param)
    return path


def test_a_shared_prompt_is_computed_once_and_says_the_same(folder: Path) -> None:
    running, prompt = Running(folder), [(7 * n) % 300 for n in range(150)]
    assert running.say(prompt, 20) == greedy(folder, prompt, 20)
    other = [*prompt[:130], 5, 6, 7]
    assert running.say(other, 20) == greedy(folder, other, 20)
    assert running.computed < len(other) + 19 - PAGE
    again = running.say(prompt, 20)
    assert again == greedy(folder, prompt, 20)


def test_pages_brought_to_another_engine_spare_it_the_prompt(folder: Path) -> None:
    old, new, prompt = Running(folder), Running(folder), [(11 * n) % 300 for n in range(70)]
    said = old.say(prompt, 60)
    pages = old.pages.held(Sequence("b", tuple(prompt), SamplingParams(80), list(said)))
    assert len(pages) >= 4
    like = new.pages.like
    new.pages.add(decode_page(bytearray(b"".join(encode_page(page))), like) for page in pages)
    assert new.say(prompt, 80, tuple(said)) == greedy(folder, prompt, 80)
    assert new.computed <= 80 - 60 + 2 * PAGE


def test_pages_of_another_model_or_cut_short_are_refused(folder: Path, tmp_path: Path) -> None:
    running = Running(folder)
    running.say(list(range(40)), 1)
    (page,) = running.pages.held(Sequence("b", tuple(range(40)), SamplingParams(1)))
    body = bytearray(b"".join(encode_page(page)))
    write_model(tmp_path / "m", hidden=64, experts=4)
    with pytest.raises(wire.WireError, match="another model"):
        decode_page(body, Running(tmp_path / "m").pages.like)
    for length in (0, 10, len(body) - 4):
        with pytest.raises(wire.WireError):
            decode_page(body[:length], running.pages.like)


def test_there_are_never_more_pages_than_there_is_room(folder: Path) -> None:
    running = Running(folder, cache_tokens=6 * PAGE)
    for start in range(6):
        running.say([start, *range(2 * PAGE)], 4)
        assert len(running.pages) <= 6
    running.pages.trim(PAGE)
    assert len(running.pages) == 1


@given(st.lists(st.integers(0, 5), max_size=200), st.lists(st.integers(0, 5), max_size=200))
@settings(max_examples=50)
def test_pages_have_one_name_exactly_if_all_tokens_up_to_their_end_are_equal(a: list[int], b: list[int]) -> None:
    named = [names(Sequence("s", tuple(tokens), SamplingParams(1))) for tokens in (a or [0], b or [0])]
    assert [len(some) for some in named] == [len(a or [0]) // PAGE, len(b or [0]) // PAGE]
    for number, (one, other) in enumerate(zip(*named, strict=False), 1):
        assert (one == other) == (a[: number * PAGE] == b[: number * PAGE])


def test_names_do_not_depend_on_where_the_prompt_ends() -> None:
    whole = Sequence("s", tuple(range(70)), SamplingParams(1))
    replayed = Sequence("s", tuple(range(20)), SamplingParams(60), list(range(20, 70)))
    assert names(whole) == names(replayed)
