"""What is changed is another one of its kind; what it was changed from stays as it is."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from scheduler.domain.changing import changed
from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState, Node, NodeState
from scheduler.domain.jobs import Job, JobKind, JobState, Role, RoleNeed, Worker, WorkerState

KEY = LeaseKey("n", 7)
DEVICE = Device("d", "gpu", "a model", 2**30, 4)
NOUNS = (
    Node("n", "s", NodeState.LENT, (DEVICE,), spare_devices=("d",), expected_end_s=9.0),
    Lease(KEY, "s", LeaseState.READY, (DEVICE,), "host", 1.0, "cohort", grace_s=2.0),
    Job("j", "name", JobKind.TRAIN, "u", JobState.RUNNING, 3.0, "{}", (RoleNeed(Role.TRAINER, 1, 4),), weight=2.0),
    Worker("w", "j", Role.TRAINER, KEY, ("d",), WorkerState.RUNNING, 4.0),
)


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: type(noun).__name__)
def test_every_field_is_changed_as_replace_does(noun: Node | Lease | Job | Worker) -> None:
    for field in fields(noun):
        before = getattr(noun, field.name)
        news = {field.name: object()}
        other = changed(noun, **news)
        assert all(getattr(other, f.name) is news.get(f.name, getattr(noun, f.name)) for f in fields(noun))
        assert getattr(noun, field.name) is before
    assert changed(noun, state=noun.state) == replace(noun)


def test_a_field_that_there_is_not_is_refused() -> None:
    with pytest.raises(KeyError, match="colour"):
        changed(NOUNS[0], colour="red")
