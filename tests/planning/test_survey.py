"""Who remembers the last snapshot sees and plans for the next one as somebody would who has never seen any."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain import events
from scheduler.domain.jobs import Role, RoleNeed
from scheduler.domain.plan import Plan, Snapshot
from scheduler.planning.plan import Replanner, plan
from scheduler.planning.survey import Survey, look
from scheduler.simulation.job_mix import default_mix
from scheduler.simulation.replay import Replayer, Setting
from scheduler.simulation.traces import IdleInterval, Trace
from tests.scheduler.world import SERVE, SHAPE, World


class Both:
    """A planner that plans in both ways and compares."""

    def __init__(self) -> None:
        self._replanner, self._survey = Replanner(), Survey()
        self.compared = 0

    def __call__(self, snapshot: Snapshot) -> Plan:
        assert self._survey.look(snapshot) == look(snapshot)
        fresh = plan(snapshot)
        assert self._replanner(snapshot) == fresh
        self.compared += 1
        return fresh


def _happen(world: World, rng: random.Random) -> None:
    """Something that changes what a snapshot holds."""
    nodes, jobs = sorted(world.inventory.nodes), sorted(world.inventory.jobs)
    needs = (RoleNeed(Role.TRAINER, least := rng.randint(1, 3), least + rng.randint(0, 4)),)
    what = rng.randrange(12)
    if what == 0 or not nodes:
        kind = rng.choice(["cpu", "gpu"])
        world.add_nodes(rng.randint(1, 4), site=rng.choice("st"), each=rng.randint(1, 2), kind=kind)
    elif what in (1, 2):
        world.submit(**rng.choice([SERVE, {"needs": needs, "shape": SHAPE}, {"needs": needs}]))
    elif what == 3:
        world.twin.kill(rng.choice(nodes))
    elif what in (4, 5):
        world.twin.owner_reclaims(rng.choice(nodes), 9.0)
    elif what == 6:
        world.twin.owner_lends(rng.choice(nodes))
    elif what == 7 and jobs:
        world.loop.post(
            events.CancelRequested(at_s=world.clock.now_s(), cause_id="user", user="ada", job=rng.choice(jobs))
        )
    elif what == 8:
        rng.choice([world.twin.drop_agent, world.twin.return_agent])(rng.choice(nodes))
    elif what == 9:
        rng.choice([world.twin.drop_site, world.twin.open_site])(rng.choice("st"))
    elif what == 10 and (workers := sorted(world.inventory.workers)):
        worker = world.inventory.workers[rng.choice(workers)]
        if world.twin.runs(worker.job, worker.id):
            world.twin.lose_worker(worker.job, worker.id)
    else:
        world.crash()


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_plans_are_the_same_whatever_was_seen_before(seed: int) -> None:
    rng, world, both = random.Random(seed), World(warmup_s=1.0), Both()
    world.add_site("s")
    world.add_site("t")
    for _ in range(12):
        _happen(world, rng)
        world.loop._planner = both
        world.run(rng.choice([0.5, 3.0, 70.0]), step_s=5.0)
    assert both.compared > 5


@given(st.integers(0, 10**6), st.sampled_from([0.0, 20.0]))
@settings(max_examples=10, deadline=None)
def test_a_replay_is_planned_the_same_whatever_was_seen_before(seed: int, grace_s: float) -> None:
    rng, both = random.Random(seed), Both()
    trace = Trace(tuple(sorted(interval for node in range(20) for interval in _idle(f"n{node:02}", rng))))
    jobs = default_mix(5)
    setting = Setting(parallel=5, grace_s=grace_s, curves_known=rng.random() < 0.5, site_of=lambda node: node[:2])
    Replayer(trace, jobs, both, setting).run()
    assert both.compared > 20


def _idle(node: str, rng: random.Random) -> Iterator[IdleInterval]:
    at_s = 0.0
    while at_s < 3000.0:
        start_s = at_s + 10.0 * rng.randint(1, 30)
        at_s = start_s + 10.0 * rng.randint(1, 90)
        yield IdleInterval(start_s, node, at_s)
