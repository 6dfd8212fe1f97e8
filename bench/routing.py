"""Routing quality: attention against linear router, 8 against 32 experts, at the same compute per token.

    python -m bench.routing --data FILE [FILE ...] [--steps N] [--seeds N] [--device D] [--at-once N] [--json FILE]

Models in the manner of Yuan 2.0-M32, two experts per token, that differ in nothing else. The last tenth of every file
is held out; each model is trained on the rest, with the job's own trainer, and its mean token loss on the held-out
text is told in nats (the lower the better), a mean over seeds. Parameters, active parameters and FLOP are of a token.
Runs that go on at once slow each other: their tokens a second compare only with each other.
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from bench.report import Row, argument_parser, publish, row
from bench.train import generation_of
from protocol.jobspec import JobSpec, parse
from protocol.models import ModelConfig
from runtime.training.decisions import all_items
from runtime.training.group import Group
from runtime.training.state import TrainState
from runtime.training.text import Batches, load_corpus
from runtime.training.trainer import Signals, Trainer

ROUTERS = {"attention": "attention router", "top_k": "linear router"}
EXPERTS = (8, 32)
EVALUATED = 256
"""Held-out sequences."""


@dataclass(frozen=True)
class Trained:
    """What a run showed."""

    held_out: float  # nats per token
    tokens_per_s: float


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    steps: int
    device: str
    folder: Path  # holds train.txt and held_out.txt, and their tokens once made

    def spec(self, router: str, experts: int, seed: int) -> JobSpec:
        """One model's job."""
        model = {"vocab_size": 4096, "hidden_size": 256, "layers": 4, "heads": 4, "expert_size": 256}
        model |= {"experts": experts, "experts_per_token": 2, "router": router}
        part = {"model": model, "steps": self.steps, "global_batch": 32, "sequence_length": 128, "seed": seed}
        part |= {"output": "out", "precision": "float32" if self.device == "cpu" else "bfloat16"}
        return parse({"kind": "train", "name": "routing", "width": {"min": 1, "max": 1}, "train": part})

    def run(self, spec: JobSpec) -> Trained:
        """Train, then evaluate."""
        part = spec.train
        assert part is not None
        length, vocabulary = part.sequence_length, part.model.vocab_size
        corpus = load_corpus(str(self.folder / "train.txt"), vocabulary, length, self.folder / "train")
        unseen = load_corpus(
            str(self.folder / "held_out.txt"), vocabulary, length, self.folder / "held_out", corpus.tokenizer_json
        )
        state = TrainState(part.model, self.device)
        state.fresh(all_items(part.model.layers, part.model.experts), part.seed)
        batches = Batches(corpus, part.seed, length)
        trainer = Trainer(spec, state, batches, Group(object(), 0, 1), generation_of(spec, 1))
        started = time.perf_counter()
        for _ in range(part.steps):
            trainer.step(Signals())
        rate = part.steps * part.global_batch * length / (time.perf_counter() - started)
        return Trained(trainer.evaluate(Batches(unseen, 0, length), EVALUATED), rate)


def split(files: list[Path], folder: Path) -> None:
    """Write the first nine tenths of every file to `train.txt`, the rest to `held_out.txt`."""
    texts = [file.read_text(encoding="utf-8") for file in files]
    folder.joinpath("train.txt").write_text("\n".join(text[: len(text) * 9 // 10] for text in texts), encoding="utf-8")
    folder.joinpath("held_out.txt").write_text("\n".join(t[len(t) * 9 // 10 :] for t in texts), encoding="utf-8")


def parameters(model: ModelConfig) -> tuple[int, int]:
    """All, and those that a token meets."""
    state = TrainState(model)
    expert = 3 * model.hidden_size * model.expert_size
    routed = [count * model.layers * expert for count in (model.experts, model.experts_per_token)]
    return state.dense.size + routed[0], state.dense.size - model.vocab_size * model.hidden_size + routed[1]


def rows_of(name: str, spec: JobSpec, runs: list[Trained], base: float) -> list[Row]:
    """One model's lines of the table; its loss stands beside that of the smallest with a linear router."""
    assert spec.train is not None
    total, active = parameters(spec.train.model)
    loss = statistics.mean(r.held_out for r in runs)
    spread = max(r.held_out for r in runs) - min(r.held_out for r in runs)
    return [
        row(f"{name}: held-out loss", "nats", loss, "linear router, 8 experts", base),
        row(f"{name}: largest difference between seeds", "nats", spread),
        row(f"{name}: parameters", "million", total / 1e6),
        row(f"{name}: active parameters", "million", active / 1e6),
        row(f"{name}: forward", "MFLOP/token", 2 * active / 1e6),
        row(f"{name}: training", "tokens/s", statistics.median(r.tokens_per_s for r in runs)),
    ]


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="UTF-8 text")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--at-once", type=int, default=1, help="runs that go on at the same time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fw-bench-") as name:
        setting = Setting(options.steps, options.device, Path(name))
        split(options.data, setting.folder)
        cases = [(experts, router, seed) for experts in EXPERTS for router in ROUTERS for seed in range(options.seeds)]
        told: dict[tuple[int, str], list[Trained]] = {}
        with ProcessPoolExecutor(options.at_once, multiprocessing.get_context("spawn")) as pool:
            specs = [setting.spec(router, experts, seed) for experts, router, seed in cases]
            for (experts, router, seed), run in zip(cases, pool.map(setting.run, specs), strict=True):
                told.setdefault((experts, router), []).append(run)
                print(f"{ROUTERS[router]}, {experts} experts, seed {seed}: {run.held_out:.4f} nats", flush=True)
        base = statistics.mean(run.held_out for run in told[EXPERTS[0], "top_k"])
        rows = []
        for (experts, router), runs in told.items():
            rows += rows_of(f"{ROUTERS[router]}, {experts} experts", setting.spec(router, experts, 0), runs, base)
    publish("routing", rows, options.json)


if __name__ == "__main__":
    main()
