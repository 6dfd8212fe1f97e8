# ruff: noqa: N815 - arrays carry their dimensions in fields too
"""How well served experts are balanced, beside DeepSeek's EPLB, and on real routing that was not counted.

    python -m bench.experts [--data ../shared/data] [--json FILE]

Balance is load of the busiest node over the mean, layer by layer: a token waits for the busiest node of each layer.
Without the data the rows of real routing are left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.eplb import eplb
from bench.report import Row, argument_parser, publish, row
from scheduler.planning.balance import Hosts, balance, busyness, expected_loads

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ROUTING = "moe/deepseek_v2_lite_routing_intent_law.npz"
TASKS = ("intent", "law")
EXPERTS, NODES, SLOTS = 64, 8, 80
SPLITS, LAYERS = 20, 20
NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Routing:
    """Recorded choices: the experts of every token in each layer, and which text each token is of."""

    ids_LTK: Ints
    text_T: Ints


def read_routing(file: Path, task: str) -> Routing:
    """One task's. Raises OSError or KeyError for another file."""
    with np.load(file) as recorded:
        lengths = recorded[f"{task}_seqlen"]
        return Routing(recorded[f"{task}_ids"], np.repeat(np.arange(len(lengths)), lengths))


def halves(routing: Routing, splits: int) -> Iterator[tuple[Ints, Ints]]:
    """The choices of half of the texts, and of the other half: `splits` times, drawn by chance."""
    texts = int(routing.text_T.max()) + 1
    for seed in range(splits):
        counted_T = np.isin(routing.text_T, np.random.default_rng(seed).permutation(texts)[: texts // 2])
        yield routing.ids_LTK[:, counted_T], routing.ids_LTK[:, ~counted_T]


def tokens_per_expert(ids_LTK: Ints) -> Floats:
    """How often each expert was chosen [L, E]."""
    return np.stack([np.bincount(ids_TK.ravel(), minlength=EXPERTS) for ids_TK in ids_LTK]).astype(np.float64)


def even_hosts(nodes: int, slots: int) -> Hosts:
    """Equal nodes, each a cohort of its own, for `slots` pairs each over all layers."""
    return Hosts(np.full(nodes, slots), np.ones(nodes), np.arange(nodes), np.arange(nodes))


def made_loads() -> dict[str, Callable[[np.random.Generator, int], Floats]]:
    """Kinds of made loads [L, E], by name."""
    return {
        "log-normal": lambda rng, experts: rng.lognormal(0.0, 0.7, (LAYERS, experts)),
        "zipf": lambda rng, experts: rng.permuted(np.tile(np.arange(1.0, experts + 1) ** -0.6, (LAYERS, 1)), axis=1),
        "pareto": lambda rng, experts: rng.pareto(1.2, (LAYERS, experts)),
    }


# --- rows ------------------------------------------------------------------------------------------------------


def beside_eplb(what: str, load_LE: Floats, nodes: int, slots: int) -> Row:
    """Even slots, balanced by both on the loads that both know; the mean over the layers."""
    hosts = even_hosts(nodes, slots * len(load_LE) // nodes)
    ours = busyness(balance(load_LE, hosts), load_LE, hosts.speed_W).max(axis=1).mean()
    peer_LED = eplb(load_LE, slots, nodes)
    peer_LD = np.einsum("le,led->ld", load_LE / peer_LED.sum(axis=2), peer_LED)
    peer = (peer_LD.max(axis=1) / peer_LD.mean(axis=1)).mean()
    figure = f"busiest node, {what}, {load_LE.shape[1]} experts in {slots} slots on {nodes} nodes"
    return row(figure, "of the mean", float(ours), "EPLB", float(peer), at_most=1.01, of="ratio")


def uneven_rows() -> list[Row]:
    """Nodes of two sizes, some faster, two nodes a cohort; every expert twice, and a quarter of them once more."""
    load_LE = made_loads()["log-normal"](np.random.default_rng(0), EXPERTS)
    size_W = np.array([2, 2, 2, 1, 1, 1, 1, 2])
    hosts = Hosts(size_W * 16 * LAYERS, size_W * np.where(np.arange(8) < 2, 1.5, 1.0), np.arange(8), np.arange(8) // 2)
    host_LEW = balance(load_LE, hosts, floor=2, copies=2 * load_LE.size + load_LE.size // 4)
    copies_LE = host_LEW.sum(axis=2)
    cohorts_LE = host_LEW.reshape(*load_LE.shape, 4, 2).any(axis=3).sum(axis=2)
    together = float((cohorts_LE < np.minimum(copies_LE, 4)).mean())
    busiest = float(busyness(host_LEW, load_LE, hosts.speed_W).max(axis=1).mean())
    what = "uneven slots and speeds, every expert twice"
    return [
        row(f"busiest node for its speed, {what}", "of the mean", busiest, at_most=1.05),
        row(f"experts with two copies in one cohort while there is another, {what}", "share", together, at_most=0.0),
    ]


def held_out_rows(routing: Routing, task: str) -> list[Row]:
    """Placed by half of the texts, judged on the other half."""
    hosts, ours, peers = even_hosts(NODES, SLOTS // NODES * len(routing.ids_LTK)), [], []
    for counted_LTK, other_LTK in halves(routing, SPLITS):
        counted_LE, other_LE = tokens_per_expert(counted_LTK), tokens_per_expert(other_LTK)
        ours.append(busyness(balance(expected_loads(counted_LE), hosts), other_LE, hosts.speed_W).max(axis=1))
        peer_LED = eplb(counted_LE, SLOTS, NODES)
        peer_LD = np.einsum("le,led->ld", other_LE / peer_LED.sum(axis=2), peer_LED)
        peers.append(peer_LD.max(axis=1) / peer_LD.mean(axis=1))
    figure = f"busiest node, DeepSeek-V2-Lite on texts not counted ({task}), {SLOTS} slots on {NODES} nodes"
    worst_S, peer_worst_S = (np.max(busiest_SL, axis=1) for busiest_SL in (ours, peers))
    return [
        row(f"{figure}, mean", "of the mean", float(np.mean(ours)), "EPLB", float(np.mean(peers)), at_most=1.10),
        row(
            f"{figure}, worst layer of the median split",
            "of the mean",
            float(np.median(worst_S)),
            "EPLB",
            float(np.median(peer_worst_S)),
            at_most=1.10,
        ),
        row(
            f"{figure}, worst layer of the worst split",
            "of the mean",
            float(worst_S.max()),
            "EPLB",
            float(peer_worst_S.max()),
        ),
    ]


def noise_row(routing: Routing, task: str) -> Row:
    """Copies that move when every load is off by 2 %."""
    load_LE, rng = tokens_per_expert(routing.ids_LTK), np.random.default_rng(0)
    hosts = even_hosts(NODES, SLOTS // NODES * len(load_LE))
    noisy_LE = load_LE * rng.normal(1.0, NOISE, load_LE.shape)
    host_LEW = balance(expected_loads(load_LE), hosts)
    ours = (balance(expected_loads(noisy_LE), hosts, host_LEW) & ~host_LEW).sum() / host_LEW.sum()
    peer_LED, after_LED = eplb(load_LE, SLOTS, NODES), eplb(noisy_LE, SLOTS, NODES)
    peer = np.maximum(after_LED - peer_LED, 0).sum() / peer_LED.sum()
    return row(f"slots that 2 % noise moves ({task})", "share", float(ours), "EPLB", float(peer), at_most=0.05)


def time_rows() -> list[Row]:
    """Models as large as they come, placed anew and after a lost node."""
    load_LE = np.random.default_rng(0).lognormal(0.0, 0.7, (58, 256))
    hosts = even_hosts(32, slots=20 * len(load_LE))
    started_s = time.process_time()
    host_LEW = balance(load_LE, hosts, floor=2)
    anew_s = time.process_time() - started_s
    started_s = time.process_time()
    balance(load_LE, even_hosts(31, slots=20 * len(load_LE)), host_LEW[:, :, 1:], floor=2)
    again_s = time.process_time() - started_s
    what = "58 layers of 256 experts on 32 nodes"
    return [
        row(f"time to place, {what}", "s", anew_s, at_most=1.0),
        row(f"time to place after a lost node, {what}", "s", again_s, at_most=1.0),
    ]


def measure(data: Path) -> list[Row]:
    """All rows."""
    shapes = ((64, 8, 80), (64, 8, 128), (256, 32, 288))
    rows = [
        beside_eplb(kind, made(np.random.default_rng(0), experts), nodes, slots)
        for experts, nodes, slots in shapes
        for kind, made in made_loads().items()
    ]
    rows += uneven_rows()
    for task in TASKS if (data / ROUTING).exists() else ():
        routing = read_routing(data / ROUTING, task)
        rows.append(beside_eplb(f"DeepSeek-V2-Lite ({task})", tokens_per_expert(routing.ids_LTK), NODES, SLOTS))
        rows += [*held_out_rows(routing, task), noise_row(routing, task)]
    return [*rows, *time_rows()]


def main() -> None:
    """Measure and publish."""
    parser = argument_parser(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the recorded routing")
    options = parser.parse_args()
    publish("experts", measure(options.data), options.json)


if __name__ == "__main__":
    main()
