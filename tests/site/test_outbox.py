"""What the site says arrives in order, whatever breaks in between; only what merely describes may be left out."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from protocol import common_pb2, site_pb2
from runtime.site.outbox import LOG_LIMIT, UNCERTAIN_S, Outbox


def worker(n: int) -> site_pb2.SiteMessage:
    lease = common_pb2.LeaseRef(node="a", epoch=1)
    return site_pb2.SiteMessage(worker=site_pb2.WorkerChanged(job="j", worker=f"w{n}", lease=lease, state="running"))


def progress(n: int) -> site_pb2.SiteMessage:
    return site_pb2.SiteMessage(progress=site_pb2.JobProgress(job="j", step=n))


def line(n: int) -> site_pb2.SiteMessage:
    return site_pb2.SiteMessage(log=site_pb2.LogLines(job="j", worker="w", lines=[str(n)]))


def lease(kind: str, node: str) -> site_pb2.SiteMessage:
    reference = common_pb2.LeaseRef(node=node, epoch=1)
    if kind == "node_ready":
        return site_pb2.SiteMessage(node_ready=site_pb2.NodeReady(lease=reference))
    return site_pb2.SiteMessage(node_gone=site_pb2.NodeGone(lease=reference))


async def drain(outbox: Outbox) -> list[site_pb2.SiteMessage]:
    """Everything that waits."""
    got = []
    while outbox.has_waiting:
        message = await outbox.take()
        outbox.taken(message)
        got.append(message)
    return got


@given(st.lists(st.sampled_from(("worker", "progress", "log", "take")), max_size=40))
def test_state_changes_all_arrive_in_order_and_the_newest_progress_does(steps: list[str]) -> None:
    async def scenario() -> None:
        outbox = Outbox()
        put: dict[str, list[site_pb2.SiteMessage]] = {"worker": [], "progress": [], "log": []}
        got: list[site_pb2.SiteMessage] = []
        for n, step in enumerate(steps):
            if step == "take":
                got += (await drain(outbox))[:]
            else:
                message = {"worker": worker, "progress": progress, "log": line}[step](n)
                put[step].append(message)
                outbox.put(message)
        got += await drain(outbox)
        for kind in ("worker", "log"):
            assert [m for m in got if m.WhichOneof("body") == kind] == put[kind]
        steps_said = [m.progress.step for m in got if m.WhichOneof("body") == "progress"]
        assert steps_said == sorted(steps_said)
        assert steps_said[-1:] == [m.progress.step for m in put["progress"]][-1:]

    asyncio.run(scenario())


async def test_what_the_stream_broke_under_is_still_there() -> None:
    outbox = Outbox()
    outbox.put(worker(1))
    outbox.put(worker(2))
    assert await outbox.take() == worker(1)
    assert await outbox.take() == worker(1), "it was not written, so it is still first"
    outbox.taken(worker_first := await outbox.take())
    assert worker_first == worker(1)
    assert await outbox.take() == worker(2)


async def test_a_newer_progress_is_said_even_if_it_came_while_the_older_was_written() -> None:
    outbox = Outbox()
    outbox.put(progress(1))
    older = await outbox.take()
    outbox.put(progress(2))
    outbox.taken(older)
    assert await drain(outbox) == [progress(2)]


async def test_loads_of_experts_replace_only_older_ones_of_the_same_job() -> None:
    outbox = Outbox()
    said = [site_pb2.SiteMessage(expert_loads=site_pb2.ExpertLoads(job=job, tokens=[n])) for n, job in enumerate("aba")]
    for message in [*said, progress(1)]:
        outbox.put(message)
    assert await drain(outbox) == [said[2], said[1], progress(1)]


async def test_old_log_lines_make_room_and_nothing_else_does() -> None:
    outbox = Outbox()
    outbox.put(worker(0))
    for n in range(LOG_LIMIT + 3):
        outbox.put(line(n))
    got = await drain(outbox)
    assert got[0] == worker(0)
    assert got[1] == line(3)
    assert len(got) == 1 + LOG_LIMIT


async def test_a_new_session_hears_what_may_not_have_arrived_and_which_nodes_are_ready() -> None:
    now_s = 0.0
    outbox = Outbox(lambda: now_s)
    outbox.put(lease("node_ready", "a"))
    outbox.put(lease("node_ready", "b"))
    outbox.put(worker(1))
    await drain(outbox)
    now_s = UNCERTAIN_S + 1
    outbox.put(lease("node_gone", "b"))
    outbox.put(worker(2))
    await drain(outbox)
    again = [lease("node_ready", "a"), lease("node_gone", "b"), worker(2)]
    assert outbox.reopen() == again, "worker 1 was heard long ago, on a stream that held"
    now_s = 10 * UNCERTAIN_S
    assert outbox.reopen() == again, "while no stream holds, nothing becomes certain"
