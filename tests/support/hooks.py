"""A web server for alerts to be sent to: it keeps what it gets, and answers as told."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook(ThreadingHTTPServer):
    """Answers `status`; with `hangs` not before `let_go` is set."""

    daemon_threads = True

    def __init__(self, status: int, hangs: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.hangs = hangs
        self.let_go = threading.Event()
        self.arrived = threading.Event()
        self.got: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """The address that it listens on."""
        return f"http://127.0.0.1:{self.server_port}/hook"

    @property
    def keys(self) -> list[str]:
        """The keys of the alerts that have come, in order."""
        return [alert["key"] for body in list(self.got) for alert in body["alerts"]]


class _Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(json.loads(body))
        self.server.arrived.set()
        if self.server.hangs:
            self.server.let_go.wait(60)
        self.send_response(self.server.status)
        if 300 <= self.server.status < 400:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.got.append({"alerts": [{"key": "a redirect was followed"}]})
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def hook(status: int = 200, *, hangs: bool = False) -> Iterator[Hook]:
    """Give a server that runs until the block ends."""
    server = Hook(status, hangs)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join(60)
