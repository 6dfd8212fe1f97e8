from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fallow.demo.completion import stream_completion
from fallow.errors import FallowError


class Endpoint(BaseHTTPRequestHandler):
    """Says three words; breaks off after the first when asked for one token."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        for word in ("你", "好", "!"):
            self._send({"choices": [{"text": word, "finish_reason": None}]})
            if asked["max_tokens"] == 1:
                return
        self._send({"choices": [{"text": "", "finish_reason": "length"}], "usage": {"completion_tokens": 3}})
        self.wfile.write(b"data: [DONE]\n\n")

    def _send(self, event: dict[str, object]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def endpoint() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pieces_become_a_text(endpoint: str) -> None:
    counts: list[int] = []
    got = stream_completion(endpoint, "m", "p", 3, counts.append)
    assert (got.text, got.tokens, counts) == ("你好!", 3, [1, 2, 3])


def test_a_stream_that_breaks_off_is_an_error(endpoint: str) -> None:
    with pytest.raises(FallowError, match="broke off"):
        stream_completion(endpoint, "m", "p", 1)


def test_nobody_there() -> None:
    with pytest.raises(FallowError, match="127"):
        stream_completion("http://127.0.0.1:1", "m", "p", 1)
