"""Tables: what is not listed raises with the story, and the document shows what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.domain.cluster import LeaseState, Node, NodeState
from scheduler.domain.jobs import JobState
from scheduler.lifecycle import IllegalTransition, move, render_tables
from scheduler.lifecycle.tables import JOB, LEASE, NODE, WORKER

DOCUMENT = Path(__file__).parents[2] / "docs" / "ARCHITECTURE.md"


def test_an_unlisted_pair_raises_with_the_story() -> None:
    node = Node("n1", "s", NodeState.LOST, ())
    with pytest.raises(IllegalTransition, match=r"node n1 cannot go from lost to lent.*\n.*agent away") as raised:
        move(node, NodeState.LENT, story=("12.0 agent away",))
    assert raised.value.story == ("12.0 agent away",)


def test_a_listed_pair_moves_and_changes_fields() -> None:
    node = move(Node("n1", "s", NodeState.BUSY, ()), NodeState.SPARE, reason="idle")
    assert (node.state, node.reason) == (NodeState.SPARE, "idle")


@pytest.mark.parametrize("table", [NODE, LEASE, JOB, WORKER])
def test_nothing_comes_back_from_the_end(table: dict[tuple[object, object], str]) -> None:
    ends = {JobState.DONE, JobState.FAILED, JobState.CANCELLED, LeaseState.ENDED}
    assert not [pair for pair in table if pair[0] in ends]
    assert all(why for why in table.values())


def test_the_document_shows_the_tables() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = text.split("<!-- states:begin -->")[1].split("<!-- states:end -->")[0]
    assert shown.strip() == render_tables().strip(), "write render_tables() into docs/ARCHITECTURE.md"
