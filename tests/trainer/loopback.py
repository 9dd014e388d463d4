"""HTTP server on a thread, for doubles of services outside of MoR."""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler, ABC):
    """Handler that passes each request to ``answer``, and keeps the log quiet."""

    protocol_version = "HTTP/1.1"
    body = b""

    @abstractmethod
    def answer(self) -> None:
        """Answer the request whose content is ``body``, by ``reply``."""

    def handle_any(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD = handle_any  # noqa: N815 - the library's names

    def reply(self, status: int, content: Any = b"", **headers: str) -> None:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload)

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextmanager
def serving(handler: type[Handler], port: int = 0) -> Iterator[str]:
    """Serve on a port, by default a free one, and yield host and port."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
