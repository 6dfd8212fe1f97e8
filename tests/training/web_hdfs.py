"""A WebHDFS server over a folder: as much of Apache Hadoop's WebHDFS REST API as fsspec's client speaks."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    """One request; `root` is set by `serving`."""

    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path, query = self._parts()
        if not path.exists():
            self._refuse("FileNotFoundException", 404)
        elif query["op"] == "LISTSTATUS":
            found = sorted(path.iterdir()) if path.is_dir() else [path]
            statuses = [_status(p) | {"pathSuffix": p.name if path.is_dir() else ""} for p in found]
            self._answer({"FileStatuses": {"FileStatus": statuses}})
        elif query["op"] == "GETFILESTATUS":
            self._answer({"FileStatus": _status(path) | {"pathSuffix": ""}})
        elif query["op"] == "OPEN":
            start = int(query.get("offset", 0))
            content = path.read_bytes()[start:]
            self._send(200, content[: int(query["length"])] if "length" in query else content)
        else:
            self._refuse("UnsupportedOperationException", 400)

    def do_PUT(self) -> None:
        path, query = self._parts()
        if query["op"] == "MKDIRS":
            path.mkdir(parents=True, exist_ok=True)
            self._answer({"boolean": True})
        elif query["op"] == "CREATE" and self._redirected(query):
            path.write_bytes(self._body())
            self._send(201, b"")

    def do_POST(self) -> None:
        path, query = self._parts()
        if query["op"] == "APPEND" and self._redirected(query):
            with path.open("ab") as file:
                file.write(self._body())
            self._send(200, b"")

    def do_DELETE(self) -> None:
        path, _ = self._parts()
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        self._answer({"boolean": True})

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def _parts(self) -> tuple[Path, dict[str, str]]:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        query["op"] = query["op"].upper()
        return self.root / unquote(url.path).removeprefix("/webhdfs/v1").lstrip("/"), query

    def _redirected(self, query: dict[str, str]) -> bool:
        """A name node sends the client to a data node; here to itself."""
        if "here" in query:
            return True
        self._body()
        self.send_response(307)
        self.send_header("Location", f"http://{self.headers['Host']}{self.path}&here=1")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, content: object) -> None:
        self._send(200, json.dumps(content).encode())

    def _refuse(self, exception: str, status: int) -> None:
        told = {"RemoteException": {"exception": exception, "message": self.path}}
        self._send(status, json.dumps(told).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    """Clients that are killed are nothing to speak of."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _status(path: Path) -> dict[str, Any]:
    return {"type": "DIRECTORY" if path.is_dir() else "FILE", "length": path.stat().st_size}


@contextmanager
def serving(root: Path) -> Iterator[str]:
    """Serve `root`; gives the URL of it."""
    handler = type("Rooted", (Handler,), {"root": root})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"webhdfs://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()
