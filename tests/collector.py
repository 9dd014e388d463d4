"""Collector of OpenTelemetry spans by OTLP over HTTP, in memory."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from mor_core import tracing
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Received:
    """Span with its ids in hexadecimal."""

    service: str
    name: str
    kind: int
    trace: str
    id: str
    parent: str
    began: int
    """Unix time, nanoseconds."""
    ended: int
    links: tuple[str, ...]
    """Ids of spans."""
    failed: bool
    reason: str
    """Reason of its failure."""
    attributes: dict[str, Any]


@dataclass
class Collector:
    address: str
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    def named(self, name: str) -> list[Received]:
        return [span for span in list(self.spans) if span.name == name]

    def in_trace(self, trace: str) -> list[Received]:
        """Return the spans in the order of their begin."""
        return sorted((span for span in list(self.spans) if span.trace == trace), key=lambda span: span.began)

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                self.spans.append(
                    Received(
                        service=attributes["service.name"],
                        name=span.name,
                        kind=span.kind,
                        trace=span.trace_id.hex(),
                        id=span.span_id.hex(),
                        parent=span.parent_span_id.hex(),
                        began=span.start_time_unix_nano,
                        ended=span.end_time_unix_nano,
                        links=tuple(link.span_id.hex() for link in span.links),
                        failed=span.status.code == span.status.STATUS_CODE_ERROR,
                        reason=span.status.message,
                        attributes={pair.key: _value(pair.value) for pair in span.attributes},
                    )
                )


def _value(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@contextmanager
def traced(service: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Turn tracing on in this process, with its own collector."""
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        monkeypatch.setattr(tracing, "_tracer", None)
        tracing.configure(service)
        provider = tracing._tracer.span_processor
        try:
            yield collector
        finally:
            provider.shutdown()


@contextmanager
def collecting() -> Iterator[Collector]:
    """Start a collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.take(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector = Collector(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
