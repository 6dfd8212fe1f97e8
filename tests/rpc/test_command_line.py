"""Commands that end by themselves, and everything that `serve` refuses before it serves: words and exit codes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scheduler.serve.command_line import main


@pytest.mark.parametrize("option", ["--listen", "--page"])
def test_a_port_in_use_is_named_with_the_remedy(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        addresses = {"--listen": "127.0.0.1:0", "--page": "127.0.0.1:0"} | {option: f"127.0.0.1:{port}"}
        arguments = [word for pair in addresses.items() for word in pair]
        status = main(["serve", "--dir", str(tmp_path), *arguments])
    said = capsys.readouterr().err
    assert status == 1
    assert f"{option}: 127.0.0.1:{port} cannot be listened on" in said
    assert "choose another port" in said


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--listen", "0.0.0.0:0"], 4, "tokens would travel there unencrypted"),
        (["--page", "0.0.0.0:0"], 4, "--page: 0.0.0.0:0 can be reached from other machines"),
        (["--listen", "nonsense"], 2, "--listen: 'nonsense' is not HOST:PORT"),
        (["--tls-cert", "x.pem"], 2, "--tls-cert and --tls-key go together"),
        (["--db", "mysql://x"], 2, "postgresql+psycopg://"),
        (["--db", "postgresql+psycopg://ada@127.0.0.1:9/x"], 3, "does not answer"),
    ],
)
def test_what_serve_refuses(
    tmp_path: Path, arguments: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--dir", str(tmp_path), *arguments]) == status
    assert says in capsys.readouterr().err


def test_tokens_are_made_listed_and_revoked_without_a_scheduler(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--db", f"sqlite:///{tmp_path / 'fallow.db'}", "--dir", str(tmp_path)]

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, *place])
        said = capsys.readouterr()
        return status, said.out, said.err

    status, secret, _ = run("token", "create", "--role", "admin", "--name", "root")
    assert (status, secret.startswith("fallow-admin-")) == (0, True)
    assert run("token", "list") == (0, "root\tadmin\n", "")
    status, _, said = run("token", "create", "--role", "admin", "--name", "root")
    assert (status, "exists already" in said) == (4, True)
    assert run("token", "create", "--role", "king", "--name", "x")[0] == 2
    assert run("token", "revoke", "--name", "root")[0] == 0
    assert run("token", "list") == (0, "", "")
    assert "tables are of version" in run("db", "upgrade")[1]
    assert (tmp_path / "fallow.db").stat().st_mode & 0o077 == 0
