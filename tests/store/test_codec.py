"""What is saved comes back the same: every field of every noun, whatever is in it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.cluster import Lease, LeaseKey, Node, NodeState
from scheduler.domain.jobs import Job, Worker
from scheduler.store.codec import from_text, to_text


@pytest.mark.parametrize("kind", [Node, Lease, Job, Worker])
@given(data=st.data())
def test_every_dataclass_comes_back_the_same(kind: Any, data: st.DataObject) -> None:
    before = data.draw(st.from_type(kind))
    text = to_text(before)
    after = from_text(kind, text)
    assert type(after) is kind
    assert repr(asdict(after)) == repr(asdict(before))  # as text, because NaN differs from itself
    assert text.isascii()
    assert "\0" not in text


@given(st.from_type(Job))
def test_a_field_with_a_column_of_its_own_is_put_back(job: Job) -> None:
    text = to_text(job, without=("spec_json",))
    assert repr(asdict(from_text(Job, text, spec_json=job.spec_json))) == repr(asdict(job))


def test_types_are_those_of_the_domain() -> None:
    lease = from_text(Worker, to_text(Worker("w", "j", "trainer", LeaseKey("n", 7), ("d",), "running", 1.0))).lease  # type: ignore[arg-type]
    assert lease == LeaseKey("n", 7)
    node = from_text(Node, to_text(Node("n", "s", NodeState.BUSY, ())))
    assert node.state is NodeState.BUSY


def test_what_an_older_fallow_did_not_write_gets_its_default() -> None:
    assert from_text(Node, '{"id":"n","site":"s","state":"busy","devices":[],"gone":1}') == Node(
        "n", "s", NodeState.BUSY, ()
    )
