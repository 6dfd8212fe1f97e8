"""Training speed: ours against transformers' Mixtral of the same sizes, and ours at widths 2 and 4 against width 1.

    python -m bench.train [--device cpu|cuda] [--quick] [--threads N] [--cpu-time] [--only PART ...] [--json FILE]

A step is forward, backward, clipping and AdamW (torch's fused one for the peer). The peer runs each of its experts
implementations once and goes on with the fastest; the one that copies every token's experts wants more memory than a
host has, and runs on a GPU only. Ours and the peer's rounds alternate, medians count. `--cpu-time` counts the process's
own CPU time, for a machine that others use too. Widths run as processes that share the cores; what they could reach at
best is what as many processes reach that share the batch and exchange nothing.

On a GPU products are in bfloat16 on both sides. Ours and the peer under autocast keep float32 parameters, gradients
and moments; the peer with bfloat16 parameters keeps all of them in bfloat16, which moves half the bytes and rounds
every update. The share of the peak is against the card's own 8192-wide product, measured in the same run.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.report import Row, argument_parser, publish, row
from protocol.jobspec import JobSpec, parse
from runtime.site.controller import LeaseKey, WorkerSlot
from runtime.training.decisions import all_items
from runtime.training.expert_parallel import ExpertParallel
from runtime.training.generation import Generation, form
from runtime.training.group import Group, open_store
from runtime.training.state import TrainState
from runtime.training.text import Batches, load_corpus
from runtime.training.trainer import Signals, Trainer

PEER_EXPERTS = {"cpu": ("grouped_mm", "eager"), "cuda": ("grouped_mm", "batched_mm", "eager")}
ON_GPU = {"hidden": 2048, "expert": 1024, "batch": 16, "length": 1024, "heads": 16, "layers": 4}
ON_GPU |= {"device": "cuda", "rounds": 9}
AT_WIDTH = {"batch": 16}
"""Sequences enough for each of four workers to have some."""
PARTS = ("steps", "blocks", "widths")


@dataclass(frozen=True)
class Sizes:
    """What is trained, and how often each side takes a step."""

    experts: int
    hidden: int = 512
    expert: int = 1024
    layers: int = 2
    batch: int = 4
    length: int = 128
    rounds: int = 5
    heads: int = 8
    device: str = "cpu"

    @property
    def precision(self) -> str:
        """Of the products, on both sides."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def spec(self, width: int = 1) -> JobSpec:
        """The job of these sizes, in the manner of Mixtral."""
        model = {"vocab_size": 1024, "hidden_size": self.hidden, "layers": self.layers, "heads": self.heads}
        model |= {"experts": self.experts, "experts_per_token": 2, "expert_size": self.expert, "router": "top_k"}
        model |= {"localised_filtering": False, "rotary_fraction": 1.0}
        part = {"model": model, "global_batch": self.batch, "sequence_length": self.length, "output": "out"}
        part["precision"] = self.precision
        return parse({"kind": "train", "name": "bench", "width": {"min": 1, "max": width}, "train": part})

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.batch * self.length

    @property
    def flops(self) -> float:
        """Of a step's products: two for each parameter that a token meets, thrice, and causal attention's."""
        met = self.layers * (4 * self.hidden**2 + 2 * 3 * self.hidden * self.expert) + 1024 * self.hidden
        return 6.0 * self.tokens * (met + self.layers * self.length * self.hidden)


def generation_of(spec: JobSpec, width: int) -> Generation:
    """Workers with an even share of the experts each."""
    assert spec.train is not None
    items = all_items(spec.train.model.expert_layers, spec.train.model.experts)
    slots = (
        WorkerSlot(f"w{i}", "trainer", LeaseKey(f"n{i}", 1), ("cpu0",), items[i::width], cohort=str(i))
        for i in range(width)
    )
    return form(1, slots)


def trainer_of(spec: JobSpec, folder: Path, group: Group, width: int, device: str = "cpu") -> Trainer:
    """A worker's trainer, with first values."""
    part = spec.train
    assert part is not None
    corpus = load_corpus(part.data, part.model.vocab_size, part.sequence_length, folder)
    state, generation = TrainState(part.model, device), generation_of(spec, width)
    state.fresh(generation.members[group.rank].slot.experts, part.seed)
    return Trainer(spec, state, Batches(corpus, part.seed, part.sequence_length), group, generation)


class Peer:
    """transformers' Mixtral with torch's fused AdamW; `dtype`: of its parameters."""

    def __init__(self, sizes: Sizes, experts: str, dtype: torch.dtype = torch.float32) -> None:
        from transformers import MixtralConfig, MixtralForCausalLM

        config = MixtralConfig(
            vocab_size=1024,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.expert,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads,
            num_local_experts=sizes.experts,
            num_experts_per_tok=2,
            use_cache=False,
        )
        config._experts_implementation = experts
        config._attn_implementation = "sdpa"
        self.model = MixtralForCausalLM(config).train().to(sizes.device, dtype)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self._ids = torch.randint(0, 1024, (sizes.batch, sizes.length), device=sizes.device)
        is_mixed = sizes.precision == "bfloat16" and dtype == torch.float32
        self.precision = partial(torch.autocast, sizes.device, torch.bfloat16, enabled=is_mixed)

    def step(self) -> None:
        """One training step."""
        self._optimizer.zero_grad(set_to_none=True)
        with self.precision():
            loss = self.model(input_ids=self._ids, labels=self._ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()


class Clock:
    """Medians of alternating rounds, in seconds of the wall or of this process's CPU."""

    def __init__(self, is_cpu_time: bool) -> None:
        self._now = time.process_time if is_cpu_time else time.perf_counter

    def once(self, work: Callable[[], Any]) -> float:
        """Seconds of one call."""
        started = self._now()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self._now() - started

    def medians(self, rounds: int, *works: Callable[[], Any]) -> list[float]:
        """The median of each, after one call to warm up."""
        for work in works:
            work()
        took = [[self.once(work) for work in works] for _ in range(rounds)]
        return [statistics.median(seconds) for seconds in zip(*took, strict=True)]


def fastest_peer(sizes: Sizes, clock: Clock, dtype: torch.dtype) -> tuple[str, Peer]:
    """The peer with the experts implementation that takes the shortest step, of those that run at all."""
    seconds = {}
    for name in PEER_EXPERTS[sizes.device]:
        try:
            seconds[name] = clock.medians(1, Peer(sizes, name, dtype).step)[0]
        except (RuntimeError, ValueError) as error:
            print(f"transformers' {name} does not run with {dtype} parameters: {str(error)[:200]}")
    name = min(seconds, key=lambda known: seconds[known])
    return name, Peer(sizes, name, dtype)


def steps(sizes: Sizes, folder: Path, clock: Clock) -> list[Row]:
    """Tokens a second of whole steps."""
    trainer = trainer_of(sizes.spec(), folder, Group(object(), 0, 1), 1, sizes.device)
    figure, rows = f"training step, {sizes.experts} experts, {sizes.precision}", []
    for dtype in dict.fromkeys((torch.float32, getattr(torch, sizes.precision))):
        name, peer = fastest_peer(sizes, clock, dtype)
        ours, theirs = clock.medians(sizes.rounds, lambda: trainer.step(Signals()), peer.step)
        peer_name = f"transformers Mixtral ({name}, {str(dtype).removeprefix('torch.')} parameters)"
        rates = (sizes.tokens / ours, peer_name, sizes.tokens / theirs)
        rows.append(row(figure, "tokens/s", *rates, at_least=1.2, of="ratio"))
    if sizes.device != "cpu":
        share = (sizes.flops / ours, "one 8192-wide product", peak_flops(sizes.device, clock))
        rows.append(row(f"share of the card's peak, {sizes.experts} experts", "FLOP/s", *share))
    return rows


def peak_flops(device: str, clock: Clock) -> float:
    """Of a large product in bfloat16."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 10 * 2 * 8192**3 / clock.medians(5, lambda: [a @ b for _ in range(10)])[0]


def blocks(sizes: Sizes, clock: Clock) -> list[Row]:
    """Tokens a second of one routed block, forward and backward."""
    spec = sizes.spec()
    assert spec.train is not None
    state, dtype = TrainState(spec.train.model, sizes.device), getattr(torch, sizes.precision)
    state.fresh(all_items(sizes.layers, sizes.experts), 0)
    shape = (sizes.layers, sizes.experts)
    executor = ExpertParallel(Group(object(), 0, 1), generation_of(spec, 1), state.weights(), shape, dtype)
    mine = state.model.model.layers[0].mlp
    x = torch.randn(sizes.tokens, sizes.hidden, device=sizes.device, dtype=dtype)
    names = ("grouped_mm", "eager")
    peers = [Peer(replace(sizes, layers=1), name, dtype).model.model.layers[0].mlp for name in names]
    work = _forward_backward(lambda x_TD: mine(x_TD, executor), x)
    fast, slow = (_forward_backward(lambda x_TD, block=block: block(x_TD.unsqueeze(0)), x) for block in peers)
    ours, grouped = (sizes.tokens / s for s in clock.medians(sizes.rounds, work, fast))
    eager = sizes.tokens / clock.medians(2, slow)[0]
    where = f"routed block forward and backward, {sizes.experts} experts, {sizes.precision}"
    return [
        row(where, "tokens/s", ours, "transformers grouped_mm", grouped, at_least=1.0, of="ratio"),
        row(where, "tokens/s", ours, "transformers eager", eager, at_least=15.0, of="ratio"),
    ]


def _forward_backward(block: Callable[[Tensor], Tensor], x_TD: Tensor) -> Callable[[], None]:
    return lambda: block(x_TD.clone().requires_grad_()).float().square().sum().backward()


class Noted(Group):
    """A group that notes how long each collective took."""

    def __init__(self, group: Group) -> None:
        super().__init__(group._group, group.rank, group.size)
        self.waits: list[float] = []

    def _wait(self, x: Tensor, start: Callable[[Any], Any]) -> None:
        before_s = self.waited_s
        super()._wait(x, start)
        self.waits.append(self.waited_s - before_s)


def _member(spec_json: str, folder: str, port: int, rank: int, width: int, rounds: int, threads: int, out: Any) -> None:
    torch.set_num_threads(threads)
    at = ("127.0.0.1", port)
    group = Noted(Group.connect(at, "bench", rank, width, at[0], torch.device("cpu"), lambda: False))
    trainer = trainer_of(JobSpec.model_validate_json(spec_json), Path(folder), group, width)
    trainer.step(Signals())
    group.barrier()
    group.waits.clear()
    started = time.perf_counter()
    for _ in range(rounds):
        trainer.step(Signals())
    out.put((rank, time.perf_counter() - started, group.waits))


def _lone_member(spec_json: str, folder: str, meeting: Any, rounds: int, out: Any) -> None:
    torch.set_num_threads(1)
    trainer = trainer_of(JobSpec.model_validate_json(spec_json), Path(folder), Group(object(), 0, 1), 1)
    trainer.step(Signals())
    meeting.wait()
    started = time.perf_counter()
    for _ in range(rounds):
        trainer.step(Signals())
    out.put(time.perf_counter() - started)


def _run(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]], out: Any) -> list[Any]:
    """One process for each of the arguments; what they tell."""
    members = [multiprocessing.get_context("spawn").Process(target=target, args=(*each, out)) for each in arguments]
    for member in members:
        member.start()
    told = [out.get(timeout=600) for _ in members]
    for member in members:
        member.join()
    return told


@dataclass(frozen=True)
class Together:
    """What processes that train one model reach, and the shares of their time that collectives take.

    Whoever comes last to a collective waits for bytes alone; what others wait longer, they wait for it.
    """

    rate: float  # tokens a second
    moving: float
    waiting: float


def at_width(sizes: Sizes, folder: Path, width: int, cores: int) -> Together:
    """`width` processes that share the cores."""
    store, out = open_store("127.0.0.1"), multiprocessing.get_context("spawn").Queue()
    spec, threads = sizes.spec(4).model_dump_json(exclude={"train": {"preset"}}), max(cores // width, 1)
    each = [(spec, str(folder), store.port, rank, width, sizes.rounds, threads) for rank in range(width)]
    told = _run(_member, each, out)
    seconds = max(took for _, took, _ in told)
    by_collective = list(zip(*(waits for _, _, waits in told), strict=True))
    moving, waited = (sum(map(of, by_collective)) / seconds for of in (min, statistics.mean))
    return Together(sizes.tokens * sizes.rounds / seconds, moving, waited - moving)


def apart(sizes: Sizes, folder: Path, width: int) -> float:
    """Tokens a second of `width` processes that share the batch and exchange nothing, each with every expert."""
    spawn = multiprocessing.get_context("spawn")
    out, meeting = spawn.Queue(), spawn.Barrier(width)
    spec = replace(sizes, batch=sizes.batch // width).spec(4).model_dump_json(exclude={"train": {"preset"}})
    told = _run(_lone_member, [(spec, str(folder), meeting, sizes.rounds)] * width, out)
    return sizes.tokens * sizes.rounds / max(told)


def widths(sizes: Sizes, folder: Path) -> list[Row]:
    """Wider, all cores shared out, against one process with one core or all of them, whichever is faster."""
    cores = os.cpu_count() or 1
    alone = max(at_width(sizes, folder, 1, threads).rate for threads in {1, cores})
    rows = []
    for width in (2, 4):
        reached, bound = at_width(sizes, folder, width, cores), apart(sizes, folder, width)
        rows.append(row(f"width {width}", "tokens/s", reached.rate, "width 1", alone, at_least=0.85, of="ratio"))
        rows.append(row(f"width {width}: share of time in which bytes move", "of 1", reached.moving))
        rows.append(row(f"width {width}: share of time waiting for the slowest", "of 1", reached.waiting))
        rows.append(row(f"width {width}: processes that exchange nothing", "tokens/s", bound, "width 1", alone))
    return rows


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time in single-process figures")
    parser.add_argument("--only", nargs="+", default=PARTS, choices=PARTS, help="parts of it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    small = {"hidden": 128, "expert": 256, "heads": 4, "length": 64, "rounds": 3} if options.quick else {}
    if options.device == "cuda":
        small = ON_GPU | ({"layers": 2, "rounds": 3} if options.quick else {})
    clock = Clock(options.cpu_time)
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as name:
        folder = Path(name)
        rows = []
        if "steps" in options.only:
            rows += [r for experts in (8, 32) for r in steps(Sizes(experts, **small), folder, clock)]
        if "blocks" in options.only:
            rows += [r for experts in (8, 32) for r in blocks(Sizes(experts, **small), clock)]
        if "widths" in options.only and options.device == "cpu":
            rows += widths(Sizes(8, **small | AT_WIDTH), folder)
    publish("train", rows, options.json)


if __name__ == "__main__":
    main()
