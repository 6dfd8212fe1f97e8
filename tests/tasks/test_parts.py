"""Laws of the parts of a task job: each item in one place, each line whole, no shell in a command."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.tasks.ledger import Ledger
from runtime.tasks.results import LineFile
from runtime.tasks.work import MissingParameter, fill_in

WORKERS = ("w0", "w1", "w2")
STEPS = st.lists(st.tuples(st.sampled_from(("take", "succeed", "fail", "give_back")), st.sampled_from(WORKERS)))


@given(st.integers(1, 8), st.integers(0, 3), STEPS)
def test_an_item_is_in_one_place_and_fails_only_by_its_own_tries(
    total: int, retries: int, steps: list[tuple[str, str]]
) -> None:
    ledger = Ledger(total, retries, (), (), {})
    held: dict[str, int] = {}
    ends: dict[int, str] = {}
    own_failures = [0] * total
    for step, worker in steps:
        if step == "take" and worker not in held:
            item = ledger.take(worker)
            if item is not None:
                assert item not in held.values()
                assert item not in ends
                held[worker] = item
        elif step == "succeed" and worker in held:
            ledger.succeed(worker)
            ends[held.pop(worker)] = "done"
        elif step == "fail" and worker in held:
            own_failures[held[worker]] += 1
            item = held.pop(worker)
            again = ledger.fail(worker)
            assert again == (own_failures[item] <= retries)
            if not again:
                ends[item] = "failed"
        elif step == "give_back":
            assert ledger.give_back(worker) == held.pop(worker, None)
    assert ledger.finished == len(ends)
    assert ledger.failed == sum(end == "failed" for end in ends.values())
    assert ledger.is_over == (len(ends) == total)
    assert ledger.has_waiting == (len(ends) + len(held) < total)


@given(st.integers(1, 6), st.sets(st.integers(0, 5)))
def test_what_is_on_disk_does_not_run_again(total: int, done: set[int]) -> None:
    done = {item for item in done if item < total}
    ledger = Ledger(total, 0, done, (), {})
    taken = {item for n in range(total) if (item := ledger.take(f"w{n}")) is not None}
    assert taken == set(range(total)) - done


def test_a_worker_goes_on_only_with_the_try_that_is_due() -> None:
    ledger = Ledger(3, 2, (0,), (), {1: 1})
    assert not ledger.adopt("w0", 0, 0), "it is done"
    assert not ledger.adopt("w0", 1, 0), "that try has been counted"
    assert ledger.adopt("w0", 1, 1)
    assert not ledger.adopt("w1", 1, 1), "w0 holds it"
    assert ledger.take("w1") == 2


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), max_size=5), st.data())
def test_a_crash_in_the_middle_of_a_line_leaves_the_lines_before_it(
    records: list[dict[str, str]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.jsonl"
        file = LineFile(path)
        for record in records:
            file.append(record)
        file.close()
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        again = LineFile(path)
        kept = whole[:cut].count(b"\n")
        assert again.lines == records[:kept]
        again.append({"after": "the crash"})
        again.close()
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert lines == [*records[:kept], {"after": "the crash"}]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_value_is_one_argument_whatever_is_in_it(value: str) -> None:
    assert fill_in(("echo", "x={v}", "{print $1}"), {"v": value}, frozenset({"v"})) == [
        "echo",
        f"x={value}",
        "{print $1}",
    ]


def test_braces_that_name_no_parameter_stay_and_missing_ones_are_told() -> None:
    assert fill_in(("awk", "{print}"), {}, frozenset()) == ["awk", "{print}"]
    with pytest.raises(MissingParameter, match=r"names \{seed\}"):
        fill_in(("train", "{seed}"), {"n": 1}, frozenset({"n", "seed"}))
