from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fallow.cli.app import run
from fallow.model_folders import MemoryNeed, fit
from fallow.results import Device, DeviceSeconds, Node
from protocol.common_pb2 import Reason
from protocol.jobspec import parse
from tests.client.fake_scheduler import FakeScheduler, event, job

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fallow", *arguments])
        code = run()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return call


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text("kind: task\nname: t\ntask: {command: ['true'], output: out}\n")
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        ("jobs",),
        ("jobs", "--all"),
        ("status", "job-1"),
        ("watch", "job-1"),
        ("logs", "job-1"),
        ("cancel", "job-1"),
        ("nodes",),
        ("drain", "n1"),
        ("why", "job-1"),
        ("token", "create", "--name", "ada"),
        ("token", "list"),
        ("token", "revoke", "ada"),
        ("usage", "--by", "node"),
    ],
)
def test_every_command_speaks_text_and_json(cli: Cli, scheduler: FakeScheduler, arguments: tuple[str, ...]) -> None:
    code, out, err = cli(*arguments)
    assert code == 0
    assert out + err
    code, out, _ = cli(*arguments, "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) is not None


def test_submit_check_says_yes_without_a_scheduler(cli: Cli, spec: Path) -> None:
    code, out, _ = cli("submit", "--check", str(spec))
    assert (code, "valid task job" in out) == (0, True)


def test_submit_prints_the_job_alone_on_stdout(cli: Cli, spec: Path, scheduler: FakeScheduler) -> None:
    code, out, _ = cli("submit", str(spec))
    assert (code, out) == (0, "job-1\n")


def test_an_invalid_spec_exits_with_4_and_names_the_field(cli: Cli, spec: Path) -> None:
    spec.write_text(spec.read_text() + "colour: red\n")
    code, _, err = cli("submit", "--check", str(spec))
    assert code == 4
    assert "colour" in err
    assert str(spec) in err


def test_a_missing_file_exits_with_2(cli: Cli) -> None:
    assert cli("submit", "nothing.yaml")[0] == 2


def test_unknown_options_exit_with_2(cli: Cli) -> None:
    code, _, err = cli("jobs", "--colour")
    assert (code, "--colour" in err) == (2, True)


def test_no_scheduler_exits_with_3(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FALLOW_ADDRESS", "127.0.0.1:1")
    code, _, err = cli("jobs")
    assert (code, "127.0.0.1:1" in err) == (3, True)


def test_a_refusal_exits_with_4_and_its_remedy(cli: Cli, scheduler: FakeScheduler) -> None:
    scheduler.refusal = Reason(code="wrong_token", message="This token is not known.", remedy="Ask for another.")
    code, _, err = cli("jobs")
    assert code == 4
    assert "This token is not known." in err
    assert "Ask for another." in err


def test_watch_exits_with_the_end_of_the_job(cli: Cli, scheduler: FakeScheduler) -> None:
    scheduler.final = job("failed", message="the disk is full")
    code, _, err = cli("watch", "job-1")
    assert (code, "the disk is full" in err) == (1, True)


def test_run_shows_the_output_and_exits_with_the_end(cli: Cli, scheduler: FakeScheduler, tmp_path: Path) -> None:
    scheduler.watches = [[event(1, "done")]]
    code, out, _ = cli("run", "-o", str(tmp_path), "--", "echo", "--flag", "hello")
    assert (code, out) == (0, "hello\n")
    assert json.loads(scheduler.submits[0].spec_json)["task"]["command"] == ["echo", "--flag", "hello"]


def test_tables_in_a_pipe_have_tabs_and_no_colours(cli: Cli, scheduler: FakeScheduler) -> None:
    _, out, _ = cli("jobs")
    assert out.splitlines()[1].split("\t")[:4] == ["job-1", "poem", "train", "running"]
    assert "\x1b" not in out


def test_help_loads_neither_grpc_nor_pydantic() -> None:
    look = "import sys; from fallow.cli import app; sys.exit(bool({'grpc', 'pydantic', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", look]).returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion(shell: str) -> None:
    """Without a terminal no shell can be detected; Typer then takes its name as an argument."""
    command = [sys.executable, "-m", "fallow", "--show-completion", shell]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert "fallow" in subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_submit_check_says_what_a_served_model_needs(cli: Cli, tmp_path: Path) -> None:
    config = {
        "model_type": "mixtral",
        "vocab_size": 100,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    }
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    path = tmp_path / "serve.yaml"
    path.write_text("kind: serve\nname: s\nserve: {model: model, shards: {min: 2, max: 4}, copies: 2}\n")
    code, out, _ = cli("submit", "--check", str(path))
    assert code == 0
    assert "each engine" in out
    assert "each shard" in out
    code, out, _ = cli("submit", "--check", "--json", str(path))
    assert code == 0
    memory = json.loads(out)["memory"]
    expert = 3 * 64 * 128 * 4
    assert memory["expert_bytes"] == expert
    assert (memory["shard_bytes_at_min"], memory["shard_bytes_at_max"]) == (16 * expert, 8 * expert)
    assert memory["cache_bytes"] == 16 * 1024 * 2 * 2 * 64 * 4


def test_a_served_model_that_cannot_run_is_refused_by_name(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    path = tmp_path / "serve.yaml"
    path.write_text("kind: serve\nname: s\nserve: {model: model}\n")
    code, _, err = cli("submit", "--check", str(path))
    assert code == 4
    assert "serve.model" in err
    assert "'gpt2', which Fallow does not run" in err
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mixtral"}')
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    code, _, err = cli("submit", "--check", str(path))
    assert code == 4
    assert "vocab_size is missing" in err


def _node(number: int, *memories: int, kind: str = "cpu", lease_state: str = "ready") -> Node:
    devices = tuple(Device(f"d{i}", kind, "", memory, 1) for i, memory in enumerate(memories))
    spare = tuple(device.id for device in devices)
    seconds = DeviceSeconds(0, 0, 0, 0, 0)
    state = ("local", "lent", devices, spare, "host", "", 1, lease_state, None, None, None, 0.0, 0.0, (), seconds)
    return Node(f"n{number}", *state, 0.0, 0.0, "", ())


def test_a_served_model_is_compared_with_the_nodes_that_are_lent() -> None:
    part = {"model": "m", "engines": {"min": 1, "max": 1}, "shards": {"min": 2, "max": 2}, "copies": 2}
    spec = parse({"kind": "serve", "name": "s", "serve": part, "device_kinds": ["cpu"]})
    need = MemoryNeed(
        engine_bytes=100 * 1024, cache_bytes=1, shard_bytes_at_min=1, shard_bytes_at_max=40 * 1024, expert_bytes=10
    )
    whole = fit(spec, need, [_node(1, 100 * 1024), _node(2, 40 * 1024, 40 * 1024)])
    assert (whole.fits, whole.nodes, whole.devices, whole.missing) == (True, 2, 3, ())
    lent = [_node(1, 100 * 1024), _node(2, 40 * 1024), _node(3, 40 * 1024, lease_state="draining")]
    short = fit(spec, need, [*lent, _node(4, 40 * 1024, kind="x")])
    assert not short.fits
    assert short.missing == ("missing: 1 more device(s) of 40.0 KiB or more for shards",)
    assert fit(spec, need, []).missing[0].startswith("missing: 1 more device(s) of 100.0 KiB or more for engines")
