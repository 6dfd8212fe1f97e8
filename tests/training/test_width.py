"""Law 5 within this process: workers as threads over real gloo groups, uneven experts, even no sequences at all."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from protocol.jobspec import JobSpec
from runtime.moe.model import MoeModel, initial_experts, initialise_dense
from runtime.training.decisions import all_items
from runtime.training.generation import form
from runtime.training.group import Group, PeerLost, open_store
from runtime.training.shares import WINDOW
from runtime.training.snapshots import Snapshots
from runtime.training.state import TrainState
from runtime.training.text import Batches, load_corpus
from runtime.training.trainer import HELD_OUT, Outcome, Signals, Trainer
from tests.training.undisturbed import run_undisturbed, slots, tiny_spec


def connect(
    store: object,
    rank: int,
    size: int,
    name: str = "all",
    over: bool = False,
    called_off: Callable[[], bool] = lambda: False,
) -> Group:
    at = ("127.0.0.1", store.port)
    return Group.connect(at, name, rank, size, "127.0.0.1", torch.device("cpu"), lambda: over, called_off)


def run_width(
    spec: JobSpec, folder: Path, shares: list[int], speeds: dict[str, float] | None = None
) -> tuple[list[list[Outcome]], list[TrainState]]:
    """Every worker's outcomes and last state, at width `len(shares)`."""
    part, workers = spec.train, [f"w{i}" for i in range(len(shares))]
    corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, folder)
    generation = form(1, slots(spec, workers, shares), speeds)
    store = open_store("127.0.0.1")

    def work(rank: int) -> tuple[list[Outcome], TrainState]:
        state = TrainState(part.model)
        state.fresh(generation.members[rank].slot.experts, part.seed)
        group = connect(store, rank, len(shares))
        batches = Batches(corpus, part.seed, part.sequence_length)
        trainer, snapshots = Trainer(spec, state, batches, group, generation), Snapshots(workers[rank])
        outcomes = [trainer.step(Signals(pending=rank)) for _ in range(part.steps)]
        copy = snapshots.take(state, group, generation)
        wards = [key for m in generation.members if m.buddy == workers[rank] for key in m.slot.experts]
        assert copy.items == {"dense", *state.experts, *wards}
        return outcomes, state

    with ThreadPoolExecutor(len(shares)) as pool:
        done = list(pool.map(work, range(len(shares))))
    return [outcomes for outcomes, _ in done], [state for _, state in done]


@pytest.mark.parametrize(
    ("fields", "shares", "global_batch"),
    [
        ({"router": "attention"}, [1, 1], 5),
        ({"router": "attention"}, [3, 0, 1], 2),  # a worker without experts, and one without sequences
        ({"router": "sigmoid_bias"}, [1, 2, 1], 4),
        ({"router": "top_k"}, [1, 0], 1),
        ({"router": "top_k", "shared_size": 24, "shared_gate": True}, [1, 1], 4),
        ({"router": "sigmoid_bias", "shared_size": 24, "layers": 3, "dense_layers": 1, "dense_size": 40}, [1, 2], 3),
    ],
)
def test_steps_are_the_same_at_any_width(
    tmp_path: Path, fields: dict[str, Any], shares: list[int], global_batch: int
) -> None:
    model = {"vocab_size": 300, "hidden_size": 32, "layers": 2, "heads": 2, "experts": 4, "expert_size": 32}
    spec = tiny_spec(model=model | fields, global_batch=global_batch, steps=6)
    losses, alone = run_undisturbed(spec, tmp_path)
    outcomes, states = run_width(spec, tmp_path, shares)
    for by_worker in zip(*outcomes, strict=True):
        assert len({(o.loss, o.gradient_norm, o.is_skipped) for o in by_worker}) == 1  # all agree, to the bit
        assert max(s.pending for s in by_worker[0].signals) == len(shares) - 1
    assert [o.loss for o in outcomes[0]] == losses  # to the bit, too
    for state in states:
        assert torch.equal(state.dense.flat.buffer, states[0].dense.flat.buffer)
        assert torch.equal(state.dense.flat.buffer, alone.dense.flat.buffer)
        for key, piece in state.experts.items():
            assert torch.equal(piece.flat.buffer, alone.experts[key].flat.buffer)
    assert sorted(key for state in states for key in state.experts) == list(
        all_items(spec.train.model.expert_layers, 4)
    )


def test_shares_that_follow_speed_change_nothing(tmp_path: Path) -> None:
    spec = tiny_spec(steps=WINDOW + 4, global_batch=24)
    losses, alone = run_undisturbed(spec, tmp_path)
    # w1 is thought to be slow, and is found not to be
    outcomes, states = run_width(spec, tmp_path, [1, 2], {"w1": 0.05})
    assert [o.loss for o in outcomes[0]] == losses
    grains = [o.grains for o in outcomes[0]]
    assert grains == [o.grains for o in outcomes[1]]
    assert grains[0] == (23, 1)
    assert grains[-1][1] > 1
    assert [o.step for o in outcomes[0] if o.speeds is not None] == [WINDOW - 1]
    for state in states:
        assert torch.equal(state.dense.flat.buffer, alone.dense.flat.buffer)


def test_parts_of_a_batch_and_evaluations_are_the_same_at_any_width(tmp_path: Path) -> None:
    spec = tiny_spec(steps=4, accumulate=3)  # two samples a part, fewer than there are grains
    whole, _ = run_undisturbed(tiny_spec(steps=4), tmp_path)
    losses, alone = run_undisturbed(spec, tmp_path)
    assert losses == pytest.approx(whole, rel=1e-5)
    outcomes, states = run_width(spec, tmp_path, [1, 2])
    assert [o.loss for o in outcomes[0]] == losses
    assert torch.equal(states[0].dense.flat.buffer, alone.dense.flat.buffer)

    part = spec.train
    corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, tmp_path)
    batches, generation, store = (
        Batches(corpus, 0, part.sequence_length),
        form(1, slots(spec, ["a", "b"])),
        open_store("127.0.0.1"),
    )

    def evaluate(rank: int) -> tuple[float, float]:
        state = TrainState(part.model)
        state.fresh(generation.members[rank].slot.experts, part.seed)
        trainer = Trainer(spec, state, batches, connect(store, rank, 2), generation)
        evaluated = trainer.evaluate(batches, 7)
        return evaluated, trainer.step(Signals()).loss  # leaves nothing behind

    state = TrainState(part.model)
    state.fresh(all_items(2, 4), part.seed)
    trainer = Trainer(spec, state, batches, Group(object(), 0, 1), form(1, slots(spec, ["only"])))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(evaluate, range(2))) == [(trainer.evaluate(batches, 7), losses[0])] * 2
    model = MoeModel(part.model)
    initialise_dense(model, part.seed)
    rows = batches.rows(HELD_OUT, 0, 7)
    logits = model(rows[:, :-1], initial_experts(part.model, part.seed))
    assert trainer.evaluate(batches, 7) == pytest.approx(cross_entropy(logits, rows[:, 1:].flatten()).item(), rel=1e-5)


def test_a_gradient_that_is_not_finite_skips_the_step_everywhere_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(steps=3)
    forward_backward = Trainer._forward_backward

    def poisoned(self: Trainer, step: int) -> None:
        forward_backward(self, step)
        if step == 1 and (1, 2) in self._state.experts:
            self._squared_norms_LE[1, 2] = math.inf

    monkeypatch.setattr(Trainer, "_forward_backward", poisoned)
    outcomes, states = run_width(spec, tmp_path, [1, 1])
    assert [[o.is_skipped for o in worker] for worker in outcomes] == [[False, True, False]] * 2
    for state in states:
        assert (state.position.step, state.position.skipped) == (3, 1)
        assert all(torch.isfinite(piece.buffer).all() for piece in state.pieces())


def test_a_member_that_leaves_breaks_the_others_wait() -> None:
    store = open_store("127.0.0.1")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: connect(store, rank, 2), range(2))
        waiting = pool.submit(first.barrier)
        second.close()
        with pytest.raises(PeerLost):
            waiting.result(timeout=60)
    with pytest.raises(PeerLost, match="closed"):
        second.barrier()


@pytest.mark.parametrize("what", ["collective", "exchange"])
def test_nobody_waits_for_a_member_that_hangs_once_that_is_known(what: str) -> None:
    store, is_known = open_store("127.0.0.1"), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        first, hanging = pool.map(lambda rank: connect(store, rank, 2, called_off=is_known.is_set), range(2))

        def wait() -> None:
            if what == "collective":
                first.barrier()
            else:
                first.exchange([], [(torch.zeros(3), 1, 0)])

        waiting = pool.submit(wait)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        is_known.set()
        with pytest.raises(PeerLost, match=r"told not to wait|called off"):
            waiting.result(timeout=60)
    first.close()
    assert not first.is_open
    hanging.close()


def test_waiting_for_somebody_who_does_not_come_can_be_called_off() -> None:
    store = open_store("127.0.0.1")
    with pytest.raises(PeerLost, match="called off"):
        connect(store, 0, 2, "nobody", over=True)


def test_bfloat16_is_the_same_at_any_width_and_near_float32(tmp_path: Path) -> None:
    exact, _ = run_undisturbed(tiny_spec(steps=6), tmp_path)
    spec = tiny_spec(steps=6, precision="bfloat16")
    losses, alone = run_undisturbed(spec, tmp_path)
    assert losses != exact
    assert losses == pytest.approx(exact, rel=1e-2)
    outcomes, states = run_width(spec, tmp_path, [1, 2])
    assert [o.loss for o in outcomes[0]] == losses
    assert torch.equal(states[0].dense.flat.buffer, alone.dense.flat.buffer)
    assert alone.dense.flat.buffer.dtype == torch.float32
