"""What is said of a tensor for which there is no memory, and of what would fit."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runtime.training.memory import (
    USABLE,
    OutOfMemory,
    advise_state,
    advise_step,
    asked_bytes,
    during,
    free_bytes,
    room_for,
    sequence_bytes,
)
from tests.training.undisturbed import tiny_spec

PART = tiny_spec(global_batch=64).train


def test_a_tensor_larger_than_what_is_free_is_refused_before_it_is_made() -> None:
    assert 0 < free_bytes() < 1 << 46
    with (
        pytest.raises(OutOfMemory, match=r"the state of x, \(3, 17592186044416\) float32, needs .* GB are free"),
        room_for("the state of x", (3, 1 << 44)),
    ):
        raise AssertionError("it was made")
    with room_for("the state of x", (3, 4)):
        pass


def test_what_torch_refuses_is_told_by_its_innermost_name_and_other_faults_are_left_alone() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"^the inner needs 18014398\.5 GB more than there is$"),
        during("the outer"),
        during("the inner"),
    ):
        torch.empty(1 << 52, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"^other$"), during("it"):
        raise RuntimeError("other")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2097152 bytes. Error code 12", 2097152),
        ("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB", 5 << 29),
        ("CUDA out of memory. Tried to allocate 20.00 MiB.", 20 << 20),
        ("no number", 0),
    ],
)
def test_sizes_are_read_from_what_torch_says(message: str, expected: int) -> None:
    assert asked_bytes(message) == expected


@given(st.integers(1, 16), st.integers(0, 10**9))
def test_advice_for_a_step_is_the_least_that_fits_by_the_estimate(width: int, free: int) -> None:
    each, usable = sequence_bytes(PART.model, PART.sequence_length), USABLE * free
    told = advise_step(PART, width, free)
    found = re.search(r"accumulate (\d+) would fit", told)
    if found is None:
        one_at_a_time = usable < each
        assert one_at_a_time or -(-PART.global_batch // width) * each <= usable
        return
    turns = int(found[1])
    at_once = int(usable / each) * width
    assert -(-PART.global_batch // turns) <= at_once < PART.global_batch / (turns - 1)


@given(st.integers(0, 10**8))
def test_advice_for_state_is_a_width_at_which_it_fits_or_none(free: int) -> None:
    told = advise_state(PART.model, free)
    found = re.search(r"width\.min (\d+) would fit", told)
    more = advise_state(PART.model, 2 * free)
    if found is None:
        assert "a smaller model would fit" in told
    else:
        assert int(re.search(r"width\.min (\d+)", more)[1]) <= int(found[1])
