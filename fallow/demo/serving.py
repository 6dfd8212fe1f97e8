"""Step 5 of the demo: serve the trained model, and take a node back in mid-stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from fallow.demo.completion import Completion, stream_completion
from fallow.demo.narrator import Narrator
from fallow.demo.owner import take_back
from fallow.demo.summary import HandBack
from fallow.errors import FallowError
from fallow.local_cluster import LocalCluster
from fallow.results import Job
from fallow.specs import load_spec
from protocol.jobspec import JobSpec

GRACE_S = 10.0
_PATIENCE_S = 120.0
_POLL_S = 0.3
_STREAM_S = 12.0  # how long a text takes, so that a node can leave in the middle of it
_PROBE_TOKENS = 24
_PROMPT = "The "


@dataclass(frozen=True, slots=True)
class Served:
    """What step 5 saw."""

    job: Job
    undisturbed: Completion
    disturbed: Completion
    hand_back: HandBack


def serve_spec(example: Path, model: Path) -> JobSpec:
    """The example's job, serving this model. Raises `InvalidSpec` when the folder holds none."""
    raw = yaml.safe_load(example.read_text(encoding="utf-8"))
    raw["serve"]["model"] = str(model)
    return load_spec(raw)


def serve(cluster: LocalCluster, spec: JobSpec, narrator: Narrator) -> Served:
    """Run the serve job and stream the same text twice. Raises `FallowError` when it cannot."""
    job = _await_endpoint(cluster, cluster.client.submit(spec).job, spec)
    narrator.say(f"OpenAI-compatible endpoint: {job.endpoint}")
    for worker in job.workers:
        narrator.say(f"{worker.role} on {worker.node}: {len(worker.experts)} experts")
    count = _tokens_to_ask(job, spec)
    undisturbed = stream_completion(job.endpoint, job.name, _PROMPT, count, _progress(narrator, count))
    narrator.say(f"undisturbed: {undisturbed.tokens} tokens in {undisturbed.seconds:.1f} s")
    disturbed, hand_back = _disturbed(cluster, job, count, narrator)
    narrator.say(
        f"with {hand_back.node} taken back in mid-stream: {disturbed.tokens} tokens in {disturbed.seconds:.1f} s, "
        f"longest stall {disturbed.longest_stall_s:.2f} s"
    )
    return Served(job, undisturbed, disturbed, hand_back)


def _await_endpoint(cluster: LocalCluster, job: str, spec: JobSpec) -> Job:
    deadline_s = time.monotonic() + _PATIENCE_S
    now = cluster.client.job(job)
    while not (now.endpoint and now.state == "running" and now.width == spec.max_width):
        if now.is_over or time.monotonic() > deadline_s:
            why = now.waiting.message if now.waiting else now.message
            raise FallowError(f"The serve job is {now.state}. {why}", f"Read {cluster.home / 'logs'}.")
        time.sleep(_POLL_S)
        now = cluster.client.job(job)
    return now


def _tokens_to_ask(job: Job, spec: JobSpec) -> int:
    """As many tokens as take about `_STREAM_S`, by a short text's speed."""
    assert spec.serve is not None
    probe = stream_completion(job.endpoint, job.name, _PROMPT, _PROBE_TOKENS)
    most = spec.serve.max_length - 2 * len(_PROMPT)
    return max(_PROBE_TOKENS, min(most, round(_STREAM_S * probe.tokens / probe.seconds)))


def _disturbed(cluster: LocalCluster, job: Job, count: int, narrator: Narrator) -> tuple[Completion, HandBack]:
    engines = {w.node for w in job.workers if w.role == "engine"}
    node = next(w.node for w in job.workers if w.role == "shard" and w.node not in engines)
    under_way = threading.Event()
    results: list[HandBack] = []
    failures: list[Exception] = []

    def owner() -> None:
        under_way.wait(_PATIENCE_S)
        try:
            results.append(take_back(cluster, node, GRACE_S))
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=owner, name="owner", daemon=True)
    thread.start()
    show = _progress(narrator, count)

    def on_piece(pieces: int) -> None:
        show(pieces)
        if pieces >= count // 8:
            under_way.set()

    disturbed = stream_completion(job.endpoint, job.name, _PROMPT, count, on_piece)
    under_way.set()
    thread.join(_PATIENCE_S)
    if failures:
        raise failures[0]
    return disturbed, results[0]


def _progress(narrator: Narrator, count: int) -> Callable[[int], None]:
    return lambda pieces: narrator.progress(pieces, count, "tokens")
