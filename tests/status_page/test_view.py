"""What the page says of the inventory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.domain.cluster import Lease, LeaseKey, LeaseState, Node, NodeState, ReclaimRecord
from scheduler.domain.jobs import Job, JobKind, JobState, Progress, Role, RoleNeed, Worker, WorkerState
from scheduler.domain.ledger import Account, AccountKey
from scheduler.domain.reasons import Reason
from scheduler.status_page import job_view, view
from scheduler.status_page.capacity import total_use, use_by_lease
from scheduler.status_page.detail import node_detail
from scheduler.status_page.feed import to_json
from scheduler.status_page.traces import Traces
from tests.status_page.scenario import Afternoon, FakeInventory, devices

NOW = 1_800_000_000.0


def node(name: str = "n1", state: NodeState = NodeState.LENT, count: int = 4) -> Node:
    return Node(name, "s", state, devices(count))


def lease(name: str = "n1", state: LeaseState = LeaseState.READY, count: int = 4, cohort: str = "s@1") -> Lease:
    return Lease(LeaseKey(name, 1), "s", state, devices(count), "", NOW, cohort)


def job(name: str = "j1", state: JobState = JobState.RUNNING, **fields: object) -> Job:
    needs = (RoleNeed(Role.TRAINER, 1, 4),)
    return replace(Job(name, f"name of {name}", JobKind.TRAIN, "lin", state, NOW, "{}", needs), **fields)  # type: ignore[arg-type]


def worker(name: str, device: str, state: WorkerState, on: str = "n1", of: str = "j1") -> Worker:
    return Worker(name, of, Role.TRAINER, LeaseKey(on, 1), (device,), state, NOW)


def inventory(*entities: Node | Lease | Job | Worker) -> FakeInventory:
    made = FakeInventory()
    for entity in entities:
        match entity:
            case Node():
                made.nodes[entity.id] = entity
            case Lease():
                made.leases[entity.key] = entity
            case Job():
                made.jobs[entity.id] = entity
            case Worker():
                made.workers[entity.id] = entity
    return made


@given(st.lists(st.sampled_from(WorkerState), max_size=4), st.sampled_from(JobState))
def test_every_borrowed_device_is_in_exactly_one_place(states: list[WorkerState], job_state: JobState) -> None:
    workers = [worker(f"w{i}", f"cuda{i}", state) for i, state in enumerate(states)]
    use = total_use(use_by_lease(inventory(node(), lease(), job(state=job_state), *workers)))
    assert use.borrowed == 4
    assert use.useful == (states.count(WorkerState.RUNNING) if job_state is JobState.RUNNING else 0)
    assert use.idle == 4 - sum(w.is_live for w in workers)


def test_an_ended_lease_is_not_borrowed() -> None:
    facts = inventory(
        node(), replace(lease(), state=LeaseState.ENDED, ended_s=NOW), worker("w", "cuda0", WorkerState.LOST)
    )
    assert use_by_lease(facts) == {}


@pytest.mark.parametrize(
    ("node_state", "lease_state", "worker_state", "code"),
    [
        (NodeState.BUSY, None, None, "b"),
        (NodeState.SPARE, None, None, "s"),
        (NodeState.LENT, LeaseState.GRANTED, None, "j"),
        (NodeState.LENT, LeaseState.JOINING, None, "j"),
        (NodeState.LENT, LeaseState.READY, None, "i"),
        (NodeState.LENT, LeaseState.READY, WorkerState.STARTING, "r"),
        (NodeState.LENT, LeaseState.READY, WorkerState.RUNNING, "u"),
        (NodeState.DRAINING, LeaseState.DRAINING, WorkerState.RUNNING, "d"),
        (NodeState.SUSPECT, LeaseState.READY, WorkerState.RUNNING, "q"),
        (NodeState.LOST, None, None, "x"),
    ],
)
def test_letters_of_the_map(
    node_state: NodeState, lease_state: LeaseState | None, worker_state: WorkerState | None, code: str
) -> None:
    entities: list[Node | Lease | Job | Worker] = [node(state=node_state), job()]
    if lease_state:
        entities.append(lease(state=lease_state))
    if worker_state:
        entities.append(worker("w", "cuda0", worker_state))
    facts = inventory(*entities)
    live = {key.node: facts.leases[key] for key in facts.leases}
    assert view.node_map(facts.nodes.values(), live, use_by_lease(facts)).states == code


@given(st.lists(st.sampled_from(["n9", "n10", "n1", "rack2-n3", "rack10-n1", "x", "2", "é٣"]), unique=True))
def test_names_are_in_their_natural_order(names: list[str]) -> None:
    facts = inventory(*(node(name) for name in names))
    ordered = [n.id for n in view.ordered_nodes(facts)]
    assert sorted(ordered) == sorted(names)
    assert ordered == [n.id for n in view.ordered_nodes(inventory(*(node(name) for name in reversed(names))))]
    wanted = [name for name in ("n1", "n9", "n10", "rack2-n3", "rack10-n1") if name in names]
    assert [name for name in ordered if name in wanted] == wanted


def test_every_list_of_nodes_has_the_same_order_and_length() -> None:
    facts = Afternoon(NOW).build().inventory
    nodes = view.ordered_nodes(facts)
    live = {item.key.node: item for item in facts.leases.values()}
    shown = view.node_map(nodes, live, use_by_lease(facts))
    assert len(shown.states) == len(shown.lent) == len(shown.used) == len(nodes) == 200
    assert [name for site in view.sites(facts, nodes) for name in site.nodes] == [n.id for n in nodes]
    assert len(view.cohorts(nodes, live).of_node) == 200
    places = view.placement(facts.jobs.values(), nodes)
    for job_id, at in places.items():
        slots = facts.jobs[job_id].assignment.workers  # type: ignore[union-attr]
        assert {nodes[i].id for i in at} == {slot.lease.node for slot in slots}


def test_books_and_harvest() -> None:
    key = AccountKey("s", "n1", "j1", "lin")
    hour = 3_600_000_000
    sums = view.books(
        [Account(key, 10 * hour, 7 * hour, hour, hour, hour), Account(key, 10 * hour, 9 * hour, 0, hour, 0)]
    )
    assert sums.borrowed_h == sums.useful_h + sums.rescale_h + sums.idle_h + sums.lost_h == 20
    assert sums.harvest == 0.8
    assert view.books([]).harvest is None


def test_a_late_hand_back_is_not_hidden() -> None:
    records = [ReclaimRecord("n1", NOW, 10.0, free_s, "owner", 0) for free_s in (0.4, 9.9, 10.2)]
    assert view.hand_backs(records) == view.HandBacks(count=3, late=1, slowest_s=10.2)


def test_numbers_that_json_cannot_say_become_nothing() -> None:
    broken = job(progress=Progress(3, 10, float("nan"), float("inf"), "tokens/s"), curve=((2, float("nan")), (4, 8.0)))
    shown = job_view.job_view(broken, Traces())
    assert (shown.loss, shown.rate, shown.scaling) == (None, None, ((4, 8.0),))
    json.loads(to_json(shown))


def test_live_jobs_come_first_and_there_is_an_end_to_them() -> None:
    many = [job(f"q{i:04d}", JobState.QUEUED) for i in range(400)]
    ended = [job(f"e{i:04d}", JobState.DONE, ended_s=NOW + i) for i in range(100)]
    shown = job_view.shown_jobs([*ended, *many, job("running")])
    assert len(shown) == job_view.MAX_JOBS
    assert shown[0].id == "running"
    assert shown[-job_view.MAX_ENDED_JOBS].id == "e0099"


def test_what_waits_comes_with_reason_and_remedy_those_that_do_not_run_first() -> None:
    afternoon = Afternoon(NOW)
    loop = afternoon.build()
    rows = job_view.unplaced(loop.inventory.jobs, {**loop.unplaced, "gone": Reason("c", "m", "r")})
    assert [row.name for row in rows] == ["mixtral-eval", "bge-embed-corpus", "yuan-m32-pretrain"]
    assert all(row.message and row.remedy for row in rows)


def test_time_left_is_only_told_when_it_is_known() -> None:
    traces, running = Traces(), job(progress=Progress(10, 100, 2.0, 1.0, "tokens/s"))
    traces.add(0.0, [running])
    assert job_view.job_view(running, traces).eta_s is None
    later = replace(running, progress=replace(running.progress, step=20))
    traces.add(10.0, [later])
    assert job_view.job_view(later, traces).eta_s == 80
    assert job_view.job_view(replace(later, state=JobState.PARKED), traces).eta_s is None


def test_a_node_in_full() -> None:
    facts = inventory(
        node(), lease(), job(), worker("w0", "cuda0", WorkerState.RUNNING), worker("w1", "cuda1", WorkerState.LOST)
    )
    facts.reclaims = (ReclaimRecord("n1", NOW, 10.0, 0.4, "owner", 0), ReclaimRecord("n2", NOW, 10.0, 0.9, "owner", 0))
    detail = node_detail(facts, facts.nodes["n1"])
    assert detail.work == (("j1", "name of j1", 1),)
    assert (detail.lease_epoch, detail.reclaims, detail.last_free_s) == (1, 1, 0.4)
    json.loads(to_json(detail))
