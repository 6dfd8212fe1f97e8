"""Which pilots to submit and which to withdraw: a pure function of one look at the machine and of the work there is.

A bag of fixed lengths waits in the queue, longer ones first; the batch system itself puts each into the first gap that
it fits. Source of the idea: HPC-Whisk (arXiv 2211.00717).
"""

from __future__ import annotations

from dataclasses import dataclass

from agents.batch import Limits, Machine, Order, PilotJob, PilotState

NICE_STEP = 50
"""Between one length and the next shorter one."""


@dataclass(frozen=True, slots=True)
class Bag:
    """What the user of the machine allows itself.

    `lengths_s` ascend. At most `each` pilots of one length and `most_pending` of all wait at a time; at most `cap`
    nodes are taken, and `reserve` nodes are never asked for.
    """

    lengths_s: tuple[float, ...]
    each: int = 10
    most_pending: int = 100
    cap: int | None = None
    reserve: int = 0

    def __post_init__(self) -> None:
        if not self.lengths_s or list(self.lengths_s) != sorted(set(self.lengths_s)) or self.lengths_s[0] <= 0:
            raise ValueError("lengths must be positive, ascending and different")
        if self.each < 1 or self.most_pending < 1 or self.reserve < 0 or (self.cap is not None and self.cap < 1):
            raise ValueError("counts must be at least 1, a reserve at least 0")


@dataclass(frozen=True, slots=True)
class Work:
    """How many nodes the work there is could use; of the nodes of pilots (their short names), those that carry some of
    it now, and those whose agents are there at all."""

    nodes: int
    at_work: frozenset[str] = frozenset()
    present: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why no more."""

    submit: tuple[Order, ...] = ()
    cancel: tuple[str, ...] = ()
    reason: str = ""


def decide(machine: Machine, work: Work, bag: Bag, limits: Limits) -> Decision:
    """What to submit and cancel now. Once that is done, the same question has the answer: nothing."""
    if not machine.nodes and work.nodes:
        return Decision(reason="no node of the place can run jobs now")  # as while a controller starts anew
    doomed = _doomed(machine, work, bag)
    running = [p for p in machine.in_state(PilotState.RUNNING) if p.id not in doomed]
    pending = machine.in_state(PilotState.PENDING)
    lengths_s = fitting(bag.lengths_s, machine, limits)
    free = max(0, room(machine, work, bag) - len(running))
    target = _target(free, machine, work, bag, lengths_s)
    surplus = _surplus(pending, target)
    waiting = [p for p in pending if p.id not in surplus]
    submit = _deficit(waiting, target, bag)
    return Decision(submit, tuple(sorted((*doomed, *surplus), key=_order)), _reason(work, lengths_s, free))


def room(machine: Machine, work: Work, bag: Bag) -> int:
    """How many nodes pilots may hold at most."""
    return max(0, min(work.nodes, machine.nodes - bag.reserve, machine.nodes if bag.cap is None else bag.cap))


def fitting(lengths_s: tuple[float, ...], machine: Machine, limits: Limits) -> tuple[float, ...]:
    """Lengths that the system allows and that hold up nobody.

    Where jobs of others cannot preempt a pilot, it must be over when the first of them is expected to start; as long
    as one waits and nobody knows until when, only the shortest length is allowed.
    """
    allowed = tuple(length_s for length_s in lengths_s if length_s <= limits.longest_s)
    if limits.preemptible or not machine.waiting:
        return allowed
    if machine.window_s is None:
        return allowed[:1]
    return tuple(length_s for length_s in allowed if length_s <= machine.window_s)


def _doomed(machine: Machine, work: Work, bag: Bag) -> set[str]:
    """Running pilots that must go: on nodes that an operator empties, and those beyond work or cap, idle ones first.

    Not those beyond the number of nodes: a node that is down for a moment takes no pilot with it.
    """
    running = machine.in_state(PilotState.RUNNING)
    leaving = {p.id for p in running if p.node in machine.leaving}
    staying = sorted((p for p in running if p.id not in leaving), key=lambda p: (p.short_node in work.at_work, _age(p)))
    allowed = work.nodes if bag.cap is None else min(work.nodes, bag.cap)
    return leaving | {p.id for p in staying[: max(0, len(staying) - allowed)]}


def _age(pilot: PilotJob) -> tuple[int, ...]:
    """Younger ones first: they have done the least."""
    return tuple(-number for number in _order(pilot.id))


def _order(pilot: str) -> tuple[int, ...]:
    return tuple(int(part) for part in pilot.replace("_", ".").split(".") if part.isdigit())


def _target(free: int, machine: Machine, work: Work, bag: Bag, lengths_s: tuple[float, ...]) -> dict[float, int]:
    """How many of each length are to wait.

    Where the machine itself sets the bound, all of the bag waits for whatever comes free next. Where a cap, a reserve
    or the work does, no more may wait than may start.
    """
    if room(machine, work, bag) < machine.nodes:
        return _spread(min(bag.most_pending, free), lengths_s, min(bag.each, free))
    each = min(bag.each, machine.nodes)
    return _spread(min(bag.most_pending, each * len(lengths_s)), lengths_s, each)


def _spread(total: int, lengths_s: tuple[float, ...], each: int) -> dict[float, int]:
    """So many pilots over the lengths, in turn, the longest first, at most `each` of one."""
    counts = dict.fromkeys(reversed(lengths_s), 0)
    while total > 0 and any(count < each for count in counts.values()):
        for length_s, count in counts.items():
            if total > 0 and count < each:
                counts[length_s] = count + 1
                total -= 1
    return counts


def _surplus(pending: tuple[PilotJob, ...], target: dict[float, int]) -> set[str]:
    """Waiting pilots to withdraw: all of a length that has no place any more, and as many as wait beyond the total.

    Which length they are of is not made to match at once: a pilot of the one starts, and the others would change
    places with every look.
    """
    misfits = {p.id for p in pending if p.length_s not in target}
    kept = [p for p in pending if p.id not in misfits]
    beyond = len(kept) - sum(target.values())
    counts = {length_s: sum(p.length_s == length_s for p in kept) for length_s in target}
    surplus: set[str] = set()
    for _ in range(max(0, beyond)):
        fullest = max(counts, key=lambda length_s: (counts[length_s] - target[length_s], -length_s))
        youngest = max((p for p in kept if p.length_s == fullest and p.id not in surplus), key=lambda p: _order(p.id))
        surplus.add(youngest.id)
        counts[fullest] -= 1
    return misfits | surplus


def _deficit(waiting: list[PilotJob], target: dict[float, int], bag: Bag) -> tuple[Order, ...]:
    """Pilots to submit, so that as many wait as should, of the lengths that are short of them."""
    missing = sum(target.values()) - len(waiting)
    orders = []
    for length_s, wanted in target.items():
        count = min(missing, max(0, wanted - sum(p.length_s == length_s for p in waiting)))
        if count:
            orders.append(Order(length_s, count, NICE_STEP * (len(bag.lengths_s) - 1 - bag.lengths_s.index(length_s))))
            missing -= count
    return tuple(orders)


def _reason(work: Work, lengths_s: tuple[float, ...], free: int) -> str:
    if not work.nodes:
        return "there is no work"
    if not lengths_s:
        return "no pilot is short enough to end before the next job of others is expected to start"
    return "" if free else "as many pilots run as may"
