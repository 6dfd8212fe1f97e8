"""Training functions of a user's own: equal to plain torch, told what is wrong, and elastic to the last bit."""

from __future__ import annotations

import base64
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import default_collate
from transformers import AutoModelForCausalLM

from protocol.jobspec import InvalidSpec, parse, parse_json
from runtime.training.adamw import clip_scale, learning_rate
from runtime.training.grains import grain_count
from runtime.training.session import Order, seed_all
from runtime.training.text import share
from tests.training.own_training import Net, Tokens, own_slots, own_spec, run_alone, run_alone_elsewhere
from tests.training.stage import Stage


def plain_torch(steps: int) -> tuple[list[float], nn.Module]:
    """The same training in a loop as everyone writes it, with the optimiser of torch."""
    spec = own_spec(steps=steps)
    part, grains = spec.train, grain_count(spec.train.global_batch, spec.max_width)
    seed_all(part.seed)
    model, data, order, losses = Net(), Tokens(), Order(100, part.seed), []
    trained = [p for p in model.parameters() if p.requires_grad]
    kinds = [[p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]]
    groups = [{"params": kinds[0], "weight_decay": part.optimizer.weight_decay}, {"params": kinds[1]}]
    optimizer = torch.optim.AdamW(groups, betas=part.optimizer.betas, eps=part.optimizer.eps, weight_decay=0.0)
    for step in range(steps):
        total = 0.0
        for grain in range(grains):
            numbers = range(*share(part.global_batch, grains, grain))
            seed_all(part.seed, step, grain)
            batch = default_collate([data[order.index(step * part.global_batch + n)] for n in numbers])
            loss = cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["labels"].flatten())
            (loss * len(numbers) / part.global_batch).backward()
            total += float(loss.detach()) * len(numbers) / part.global_batch
        norm = sum(float(p.grad.double().square().sum()) for p in trained)
        for p in trained:
            p.grad *= clip_scale(norm, part.optimizer.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(part.optimizer, step, steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, model


def test_one_worker_does_what_a_plain_loop_does(tmp_path: Path) -> None:
    expected, model = plain_torch(12)
    told = run_alone(own_spec(steps=12), tmp_path)
    assert told[-1]["kind"] == "finished", told[-1]
    assert [event["loss"] for event in told if event["kind"] == "step"] == pytest.approx(expected, rel=1e-5)
    saved = load_file(tmp_path / "out" / "model.safetensors")
    for name, value in saved.items():
        assert torch.allclose(value, model.state_dict()[name], atol=1e-5), name


def _pickled(function: Any) -> dict[str, Any]:
    return {"function": None, "pickled": base64.b64encode(cloudpickle.dumps(function)).decode()}


def _returns_early(session: Any) -> None:
    model = session.model(nn.Linear(1, 1))
    for batch in session.batches([torch.ones(1)] * 4):
        session.step(model(batch).mean())
        return


def _forgets_the_step(session: Any) -> None:
    session.model(nn.Linear(1, 1))
    for _ in session.batches([torch.ones(1)] * 4):
        pass


def _keeps_statistics(session: Any) -> None:
    session.model(nn.BatchNorm1d(3))


def _is_in_half_precision(session: Any) -> None:
    session.model(nn.Linear(1, 1).half())


def _has_nothing_to_train(session: Any) -> None:
    session.model(nn.Linear(1, 1).requires_grad_(False))


def _has_no_data(session: Any) -> None:
    session.model(nn.Linear(1, 1))
    next(session.batches([]))


def _raises(session: Any) -> None:
    raise KeyError("no such column")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_returns_early, "returned after 0 of 80 steps"),
        (_forgets_the_step, "once for each batch"),
        (_keeps_statistics, "keeps running statistics"),
        (_is_in_half_precision, "keep parameters in float32"),
        (_has_nothing_to_train, "nothing to train"),
        (_has_no_data, "the dataset is empty"),
        (_raises, "no such column.*test_own_model.py, line .* in _raises"),
    ],
)
def test_what_cannot_work_is_told(tmp_path: Path, function: Any, message: str) -> None:
    told = run_alone(own_spec(**_pickled(function)), tmp_path)[-1]
    assert told["kind"] == "failed"
    assert re.search(message, told["message"]), told["message"]


def test_a_step_whose_gradient_is_not_finite_is_left_out(tmp_path: Path) -> None:
    def train(session: Any) -> None:
        model = session.model(nn.Linear(1, 1))
        for batch in session.batches([torch.ones(1)] * 8):
            loss = mse_loss(model(batch), batch)
            session.step(loss * torch.inf if session.steps_taken == 1 else loss)

    told = run_alone(own_spec(**_pickled(train), steps=4), tmp_path)
    losses = [event["loss"] for event in told if event["kind"] == "step"]
    assert [loss is None for loss in losses] == [False, True, False, False]
    assert told[-1]["kind"] == "finished", told[-1]


def test_the_spec_takes_a_function_or_a_model_and_comes_through_the_wire() -> None:
    spec = own_spec()
    assert spec.train.model is None
    assert spec.train.is_own
    assert parse_json(spec.model_dump_json(exclude_none=True)) == spec == parse_json(spec.model_dump_json())
    part = {"steps": 1, "output": "out"}
    for wrong in (
        {"function": "a:b", "model": {}},
        {"function": "a:b", "preset": "yuan2-tiny"},
        {"function": "a:b", "pickled": "eA=="},
        {"function": "no function"},
        {"model": None},
    ):
        with pytest.raises(InvalidSpec, match="train"):
            parse({"kind": "train", "name": "x", "train": part | wrong})


def test_the_example_trains_a_model_that_transformers_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune.py"])
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "finetune.py"))
    told = run_alone(own_spec(**_pickled(example["train"]), steps=6), tmp_path)
    losses = [event["loss"] for event in told if event["kind"] == "step"]
    assert losses[-1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()  # what was tied still is


class OwnStage(Stage):
    """A stage whose workers have no experts."""

    slots_of = staticmethod(lambda spec, workers, shares=None: own_slots(workers))


@pytest.fixture
async def made_stage(tmp_path: Path) -> Stage:
    return OwnStage(tmp_path, own_spec())


@pytest.mark.slow
async def test_grow_shrink_kill_and_park_leave_the_losses_as_they_were(stage: Stage, tmp_path: Path) -> None:
    await stage.warm(*"abcde")
    await stage.become(["a", "b"], "start")
    await stage.at_step(5)
    grown = await stage.become(["a", "b", "c", "d"], "grow")
    await stage.at_step(grown["at_step"] + 3)
    shrunk = await stage.become(["b", "c", "d"], "reclaim")
    await stage.at_step(shrunk["at_step"] + 6)
    stage.actors.kill("c")
    await stage.said.until("reached", lambda f: f["cause"] == "loss")
    await stage.assign([], "reclaim")
    await stage.said.until("worker", lambda f: (f["worker"], f["state"]) == ("b", "left"))
    await stage.warm("f")
    await stage.become(["e", "f"], "grow")
    ended = await stage.said.until("ended")
    assert ended["outcome"] == "done", ended
    assert all(lost["steps"] <= 4 for lost in stage.said.all("work_lost"))
    expected = run_alone_elsewhere(stage.spec, tmp_path / "alone")
    assert stage.losses() == dict(enumerate(expected, 1))  # to the bit
    ours, alone = (load_file(folder / "out" / "model.safetensors") for folder in (tmp_path, tmp_path / "alone"))
    assert all(torch.equal(ours[name], alone[name]) for name in alone)
