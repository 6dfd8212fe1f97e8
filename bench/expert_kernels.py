"""Ways to run experts against the segment loop: torch's grouped_mm for inference, `fused` for training.

    python -m bench.expert_kernels [--quick] [--threads N] [--json FILE]

Rounds of both alternate, so that what else the machine does meets both; the least of the rounds counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grouped_mm, silu

from bench.report import Row, argument_parser, publish, row
from runtime.moe.experts import ExpertWeights, run_segments
from runtime.moe.fused_experts import fused

ROWS = (1, 4, 16, 64, 256)
"""Rows per expert."""


class Bank:
    """Experts side by side in memory, each also a parameter with a gradient of its own."""

    def __init__(self, experts: int, hidden: int, size: int, device: str, dtype: torch.dtype) -> None:
        self.w1_EFD = torch.randn(experts, 2 * size, hidden, device=device, dtype=dtype).mul_(0.02)
        self.w2_EDF = torch.randn(experts, hidden, size, device=device, dtype=dtype).mul_(0.02)
        pairs = zip(self.w1_EFD, self.w2_EDF, strict=True)
        self.experts = [ExpertWeights(nn.Parameter(a), nn.Parameter(b)) for a, b in pairs]
        for matrix in self.matrices:
            matrix.grad = torch.zeros_like(matrix)

    @property
    def matrices(self) -> list[Tensor]:
        """All of them."""
        return [matrix for expert in self.experts for matrix in expert]

    def grouped(self, x_ND: Tensor, counts: list[int]) -> Tensor:
        """Rows sorted by expert through torch's kernel."""
        ends_E = torch.tensor(counts, dtype=torch.int32).cumsum(0, dtype=torch.int32).to(x_ND.device)
        gate_NF, value_NF = grouped_mm(x_ND, self.w1_EFD.transpose(1, 2), offs=ends_E).chunk(2, dim=1)
        return grouped_mm(silu(gate_NF) * value_NF, self.w2_EDF.transpose(1, 2), offs=ends_E)

    def train(self, kernel: Any, x_ND: Tensor, counts: list[int]) -> None:
        """Forward and backward."""
        for matrix in self.matrices:
            matrix.grad.zero_()
        kernel(x_ND.detach().requires_grad_(), counts, self.experts).sum().backward()


def compare(first: Callable[[], Any], second: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Least seconds of each, over alternating rounds after one to warm up: on a CPU its own time, not the wall's."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    took: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for work, seconds in zip((first, second), took, strict=True):
            started = clock()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(clock() - started)
    return min(took[0][1:]), min(took[1][1:])


def measure(experts: int, hidden: int, size: int, rounds: int, device: str, dtype: torch.dtype) -> list[Row]:
    """Rows for every number of rows per expert."""
    bank = Bank(experts, hidden, size, device, dtype)
    rows = []
    for per_expert in ROWS:
        counts = [per_expert] * experts
        x = torch.randn(experts * per_expert, hidden, device=device, dtype=dtype)
        infer = (partial(run_segments, x, counts, bank.experts), partial(bank.grouped, x, counts))
        with torch.no_grad():
            by_loop, by_group = compare(*infer, rounds)
        autograd, ours = compare(
            partial(bank.train, run_segments, x, counts), partial(bank.train, fused, x, counts), rounds
        )
        where = f"{experts} experts of {hidden} x {size}, {per_expert} rows each"
        rows.append(row(f"inference by grouped_mm, {where}", "ms", by_group * 1e3, "loop", by_loop * 1e3))
        rows.append(row(f"training, fused, {where}", "ms", ours * 1e3, "loop", autograd * 1e3))
    return rows


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size, few rounds")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sizes = [(8, 128, 256)] if options.quick else [(8, 256, 512), (32, 256, 512), (64, 512, 256)]
    rows = [r for size in sizes for r in measure(*size, 3 if options.quick else 7, device, dtype)]
    publish("expert_kernels", rows, options.json)


if __name__ == "__main__":
    main()
