"""Free devices in the order in which jobs choose them: what a job gets is what a look at every one would have given."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.domain.cluster import Device, Lease, LeaseKey, LeaseState
from scheduler.domain.jobs import Role, WorkerSlot
from scheduler.planning.lasting import Lasting
from scheduler.planning.placement import Ground, choose_spots
from scheduler.planning.stock import SERVING_FOR_S, TRAINING_FOR_S, Stock
from scheduler.planning.view import Spot, place_of

NOW_S = 5_000.0
LASTING = Lasting(NOW_S)
AGES_S = (0.0, 40.0, 1_000.0, 4_000.0)


def lease_of(number: int, cohort: int, devices: int, age_s: float) -> Lease:
    of_it = tuple(Device(f"d{i}", "gpu", "gpu", 1 + number % 2, 1) for i in range(devices))
    key = LeaseKey(f"n{number:02}", number + 1)
    return Lease(key, "s", LeaseState.READY, of_it, "", NOW_S - age_s, f"c{cohort}")


LEASES = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.sampled_from(AGES_S)), min_size=1, max_size=12
).map(lambda rows: [lease_of(number, *row) for number, row in enumerate(rows)])


def by_looking_together(
    count: int, free: list[Spot], mates: list[WorkerSlot], leases: dict[LeaseKey, Lease]
) -> list[Spot]:
    homes, cohorts = {slot.lease for slot in mates}, {leases[slot.lease].cohort for slot in mates}
    first: dict[str, Spot] = {}
    for spot in sorted(free, key=place_of):
        first.setdefault(spot.lease.cohort, spot)
    size, of_lease = Counter(s.lease.cohort for s in free), Counter(s.lease.key for s in free)

    def rank(spot: Spot) -> tuple[object, ...]:
        cohort = spot.lease.cohort
        of_cohort = (cohort not in cohorts, -LASTING.chance(first[cohort].lease, TRAINING_FOR_S), -size[cohort], cohort)
        of_spot = (spot.lease.key not in homes, -LASTING.chance(spot.lease, TRAINING_FOR_S), -of_lease[spot.lease.key])
        return *of_cohort, *of_spot, place_of(spot)

    return sorted(free, key=rank)[:count]


def by_looking_apart(
    count: int, free: list[Spot], mates: list[WorkerSlot], leases: dict[LeaseKey, Lease]
) -> list[Spot]:
    same = [slot.lease for slot in mates if slot.role is Role.SHARD]
    nodes, cohorts = Counter(key.node for key in same), Counter(leases[key].cohort for key in same)
    others, share = Counter(slot.lease.node for slot in mates), max(1, (len(same) + count) // 4)
    left, chosen = list(free), []
    while left and len(chosen) < count:
        best = min(
            left,
            key=lambda s: (
                nodes[s.lease.key.node],
                max(0, cohorts[s.lease.cohort] + 1 - share),
                others[s.lease.key.node],
                -round(LASTING.chance(s.lease, SERVING_FOR_S), 3),
                cohorts[s.lease.cohort],
                place_of(s),
            ),
        )
        left.remove(best)
        chosen.append(best)
        for counted, what in (
            (nodes, best.lease.key.node),
            (cohorts, best.lease.cohort),
            (others, best.lease.key.node),
        ):
            counted[what] += 1
    return chosen


@given(LEASES, st.data())
@settings(max_examples=150, deadline=None)
def test_every_choice_is_the_best_of_all_that_is_free(of: list[Lease], data: st.DataObject) -> None:
    """Jobs come one after the other, some with workers already; some give back what they took."""
    leases = {lease.key: lease for lease in of}
    ground = Ground(leases, LASTING)
    free = [Spot(lease, device) for lease in of for device in lease.devices]
    stock = Stock({place_of(spot): spot for spot in free}, LASTING)
    held: list[list[Spot]] = []
    for number in range(data.draw(st.integers(1, 6))):
        role, count = data.draw(st.sampled_from([Role.TRAINER, Role.SHARD])), data.draw(st.integers(1, 6))
        mates = [
            WorkerSlot(f"w{number}-{index}", mate, spot.lease.key, (spot.device.id,))
            for index, spot in enumerate(data.draw(st.sampled_from(held)) if held else ())
            for mate in [data.draw(st.sampled_from([role, Role.ENGINE]))]
        ]
        memory = data.draw(st.sampled_from([1, 2]))
        by_looking = by_looking_apart if role is Role.SHARD else by_looking_together
        expected = by_looking(count, [s for s in free if s.device.memory_bytes >= memory], mates, leases)
        found = choose_spots(role, count, stock.fitting(memory), mates, ground, copies=2)
        assert [spot.id for spot in found] == [spot.id for spot in expected]
        stock.take(found)
        if data.draw(st.booleans()):
            stock.give_back(found)
        else:
            free = [spot for spot in free if spot not in found]
            held += [list(found)] if found else []
        assert len(stock) == len(free)
