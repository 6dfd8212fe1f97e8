"""Serving speed: our engine against transformers' `generate` and its continuous batching, and experts on three nodes.

    python -m bench.serve [--gguf FILE] [--concurrency 1 8 32] [--rounds 3] [--device cuda] [--cpu-time]
                          [--trace CSV [--trace-minutes 10] [--trace-faster 1]] [--llama-cpp PYTHON]
                          [--only PART ...] [--json FILE]

Models: SmolLM2-135M if `--gguf` is given (`bench.served_models` says where from), else random weights in its shape, and
a small random MoE in OLMoE's shape; fp32 on a CPU, bf16 on a GPU. All requests are there at once, with prompts of 16 to
160 tokens and answers of 16 to 96, greedy, every answer to its full length. Tokens a second count answers only.
`generate` runs all requests as one batch, padded on the left, to the longest answer. Ours and the peers' rounds
alternate, medians count. Nobody serves over HTTP here: what is compared is the engines.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.llama_peer import LlamaCpp
from bench.report import Row, argument_parser, publish, row
from bench.served_models import olmoe, smollm2, smollm2_shape
from bench.sharded import Sharded
from bench.trace_serving import Work, median_last_s, percentile, recorded, replay, replay_in_batches, thinned
from runtime.moe.expert_bank import BankExperts, ExpertBank
from runtime.moe.key_value_pool import cache_factory
from runtime.moe.packed import packed
from runtime.moe.reading import ModelFolder
from runtime.serving.engine import Engine
from runtime.serving.pages import Pages
from runtime.serving.params import SamplingParams
from runtime.serving.sequences import Sequence as Request
from runtime.serving.sequences import StepScheduler

STEP_TOKENS = 256
SHARDS = 3
LARGEST_BATCH = 32
PARTS = ("dense", "moe", "nodes", "trace", "llama")
BATCHES = "transformers generate on all who wait"


def mixed(count: int, vocab_size: int) -> list[Work]:
    """The same `count` requests every time."""
    chance = random.Random(count)
    return [
        Work(tuple(chance.randrange(300, min(vocab_size, 8000)) for _ in range(chance.randint(16, 160))), length)
        for length in (chance.randint(16, 96) for _ in range(count))
    ]


class Ours:
    """The engine over a folder, its experts in this process or on an executor that is given."""

    def __init__(self, folder: Path, device: str, executor: Any = None) -> None:
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        bank = ExpertBank(device, dtype)
        with ModelFolder(folder, dtype) as opened:
            self.model = packed(opened.dense_model().to(device))
            if executor is None:
                bank.add(opened.experts().experts)
        self._experts = executor or BankExperts(bank, self.model.config.experts)
        self._device, self._dtype = device, dtype

    def run(self, works: Sequence[Work]) -> list[list[int]]:
        """All answers. A new engine each time, so that no page of an earlier round helps."""
        engine = self.engine(len(works))
        scheduler = engine.scheduler
        requests = [Request(str(n), work.prompt, SamplingParams(work.answer)) for n, work in enumerate(works)]
        for request in requests:
            scheduler.add(request)
        while scheduler.running or scheduler.waiting:
            engine.step()
        return [request.emitted for request in requests]

    def engine(self, max_batch: int) -> Engine:
        """A new one."""
        config, room = self.model.config, 64 * 512
        pages = Pages(cache_factory(config, self._device, self._dtype), room, config.localised_filtering)
        scheduler = StepScheduler(max_batch, STEP_TOKENS, room, pages.open)
        return Engine(self.model, self._experts, scheduler, pages)


class Transformers:
    """The peer over the same folder."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        self.model.generation_config.eos_token_id = None
        self._device = device

    @torch.inference_mode()
    def generate(self, works: Sequence[Work]) -> list[list[int]]:
        """One padded batch, to the longest answer."""
        width = max(len(work.prompt) for work in works)
        ids = torch.tensor([[0] * (width - len(work.prompt)) + list(work.prompt) for work in works])
        mask = torch.tensor([[0] * (width - len(work.prompt)) + [1] * len(work.prompt) for work in works])
        out = self.model.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=max(work.answer for work in works),
            do_sample=False,
            pad_token_id=0,
        )
        return [said[width : width + work.answer].tolist() for said, work in zip(out, works, strict=True)]

    def continuous(self, works: Sequence[Work]) -> list[list[int]]:
        """`generate_batch`, which gives every request as many tokens as the longest wants."""
        from transformers import GenerationConfig

        settings = GenerationConfig(
            max_new_tokens=max(work.answer for work in works), do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        told = self.model.generate_batch([list(work.prompt) for work in works], generation_config=settings)
        said = [told[key].generated_tokens for key in sorted(told, key=lambda key: int(key.rpartition("_")[2]))]
        return [tokens[: work.answer] for tokens, work in zip(said, works, strict=True)]


def rates(
    works: Sequence[Work], rounds: int, now: Callable[[], float], *ways: Callable[[Sequence[Work]], Any]
) -> list[float]:
    """Answer tokens a second of each way, the median of alternating rounds after one to warm up."""
    tokens = sum(work.answer for work in works)
    took: list[list[float]] = [[] for _ in ways]
    for number in range(rounds + 1):
        for way, seconds in zip(ways, took, strict=True):
            started = now()
            way(works)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds.append(now() - started)
    return [tokens / statistics.median(seconds) for seconds in took]


def against_transformers(name: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Ours and the peer at every concurrency."""
    ours, peer = Ours(folder, options.device), Transformers(folder, options.device)
    rows, now = [], time.process_time if options.cpu_time else time.perf_counter
    for count in options.concurrency:
        works = mixed(count, ours.model.config.vocab_size)
        ways: dict[str, Callable[[Sequence[Work]], Any]] = {"generate": peer.generate}
        if count > 1 and not options.no_continuous and _works(peer.continuous):
            ways["generate_batch"] = peer.continuous
        mine, *theirs = rates(works, options.rounds, now, ours.run, *ways.values())
        for way, rate in zip(ways, theirs, strict=True):
            goal = 1.3 if way == "generate_batch" else 1.0 if count == 1 else 2.0
            figure = f"{name}, {count} at once"
            rows.append(row(figure, "tokens/s", mine, f"transformers {way}", rate, at_least=goal, of="ratio"))
            print(rows[-1], file=sys.stderr, flush=True)
        alike = sum(a == b for a, b in zip(ours.run(works), peer.generate(works), strict=True))
        rows.append(row(f"{name}, {count} at once: answers equal to generate's", "of 1", alike / count))
    return rows


def against_llama_cpp(name: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Ours and llama.cpp with the same numbers and as many threads."""
    ours, rows = Ours(folder, options.device), []
    with LlamaCpp(options.llama_cpp, options.gguf, folder, options.threads) as peer:

        def one_by_one(works: Sequence[Work]) -> list[list[int]]:
            return peer.run([work.prompt for work in works], [work.answer for work in works])

        for count in options.concurrency:
            works = mixed(count, ours.model.config.vocab_size)
            mine, theirs = rates(works, options.rounds, time.perf_counter, ours.run, one_by_one)
            title = f"{name}, {count} at once"
            rows.append(row(title, "tokens/s", mine, f"llama-cpp-python {peer.version}, fp32", theirs, of="ratio"))
            alike = sum(a == b for a, b in zip(ours.run(works), one_by_one(works), strict=True))
            rows.append(row(f"{title}: answers equal to llama.cpp's", "of 1", alike / count))
    return rows


def on_a_trace(name: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Requests as they came on a recorded day, to ours and to batches of `generate`."""
    ours, peer = Ours(folder, options.device), Transformers(folder, options.device)
    works = recorded(options.trace, options.trace_minutes, ours.model.config.vocab_size, options.trace_faster)
    burst = works[: 2 * LARGEST_BATCH]
    started_s = time.perf_counter()
    ours.run(burst)
    works = thinned(works, sum(work.tokens for work in burst) / (time.perf_counter() - started_s))
    engine = ours.engine(LARGEST_BATCH)

    def add(id: str, work: Work) -> None:
        engine.scheduler.add(Request(id, work.prompt, SamplingParams(work.answer)))

    mine = replay(works, add, lambda: [(each.sequence, bool(each.finish)) for each in engine.step()])
    theirs = replay_in_batches(works, peer.generate, LARGEST_BATCH)
    speed = f" {options.trace_faster:g} times as fast" if options.trace_faster != 1.0 else ""
    figure = f"{name}, Azure trace, {options.trace_minutes:g} min{speed}, {len(works)} requests"
    return [
        row(f"{figure}: arrival to whole answer, median", "s", median_last_s(mine), BATCHES, median_last_s(theirs)),
        *(
            row(
                f"{figure}: arrival to {what}, 95th percentile",
                "s",
                percentile([getattr(each, part) for each in mine], 0.95),
                BATCHES,
                percentile([getattr(each, part) for each in theirs], 0.95),
            )
            for what, part in {"first token": "first_s", "whole answer": "last_s"}.items()
        ),
    ]


def _works(way: Callable[[Sequence[Work]], Any]) -> bool:
    try:
        way([Work((300, 301, 302), 2)])
        return True
    except Exception as error:
        print(f"transformers' continuous batching does not run here: {error!r}", file=sys.stderr)
        return False


def on_three_nodes(name: str, folder: Path, options: argparse.Namespace) -> list[Row]:
    """Experts in three processes against all in one, which may use every core."""
    alone = Ours(folder, options.device)
    works = mixed(8, alone.model.config.vocab_size)
    with Sharded(folder, SHARDS) as shards:
        spread, spent = Ours(folder, options.device, shards.executor), Spent()

        def sharded(given: Sequence[Work]) -> None:
            nonlocal spent
            threads, before = torch.get_num_threads(), Spent.of(shards)
            torch.set_num_threads(1)
            spread.run(given)
            torch.set_num_threads(threads)
            spent = Spent.of(shards).since(before)

        single, rate = rates(works, options.rounds, time.perf_counter, alone.run, sharded)
    figure = f"{name}, 8 at once, experts on {SHARDS} nodes"
    return [
        row(figure, "tokens/s", rate, "one process", single, at_least=0.7, of="ratio"),
        *breakdown(figure, 1.0 / rate, spent, sum(work.answer for work in works)),
    ]


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of an engine and its shards in expert calls: in them at all, waiting in them, and the shards' own."""

    hop_s: float = 0.0
    wait_s: float = 0.0
    compute_s: float = 0.0

    @staticmethod
    def of(shards: Sharded) -> Spent:
        """Until now."""
        return Spent(shards.plane.hop_s, shards.plane.wait_s, shards.compute_s())

    def since(self, before: Spent) -> Spent:
        """What came after."""
        return Spent(self.hop_s - before.hop_s, self.wait_s - before.wait_s, self.compute_s - before.compute_s)


def breakdown(figure: str, token_s: float, spent: Spent, tokens: int) -> list[Row]:
    """What an answer's token takes, by parts; the last round's calls against the median round's time."""
    hop, wait, compute = (1e3 * part / tokens for part in (spent.hop_s, spent.wait_s, spent.compute_s))
    return [
        row(f"{figure}: a token", "ms", 1e3 * token_s),
        row(f"{figure}: of it attention, routers, norms, sampling", "ms", 1e3 * token_s - hop),
        row(f"{figure}: of it expert calls: sorting, framing, sending, receiving", "ms", hop - wait),
        row(f"{figure}: of it expert calls: waiting for shards", "ms", wait),
        row(f"{figure}: meanwhile the {SHARDS} shards computed, all together", "ms", compute),
    ]


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="SmolLM2-135M-Instruct as GGUF")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--cpu-time", action="store_true", help="count this process's CPU time, where others compute too"
    )
    parser.add_argument("--no-continuous", action="store_true", help="leave generate_batch out")
    parser.add_argument("--trace", type=Path, help="Azure's trace of LLM requests, as CSV")
    parser.add_argument("--trace-minutes", type=float, default=10.0)
    parser.add_argument("--trace-faster", type=float, default=1.0, help="replay it so many times as fast")
    parser.add_argument("--llama-cpp", type=Path, help="a Python that has llama-cpp-python: see bench.llama_peer")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as name:
        moe = olmoe(Path(name))
        title = "SmolLM2-135M" if options.gguf else "SmolLM2-135M's shape"
        dense = smollm2(options.gguf, Path(name)) if options.gguf else smollm2_shape(Path(name))
        if "dense" in options.only:
            rows += against_transformers(title, dense, options)
        if "moe" in options.only:
            rows += against_transformers("OLMoE-shaped", moe, options)
        if "nodes" in options.only:
            rows += on_three_nodes("OLMoE-shaped", moe, options)
        if "llama" in options.only and options.gguf and options.llama_cpp:
            rows += against_llama_cpp(title, dense, options)
        if "trace" in options.only and options.trace:
            rows += on_a_trace(title, dense, options)
    publish("serve", rows, options.json)


if __name__ == "__main__":
    main()
