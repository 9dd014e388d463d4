"""One OpenTelemetry trace for each group, from its prompt to the gradient, over all services and streams.

Off, and then nothing is imported, unless ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT``
names a collector; every other ``OTEL_*`` variable is OpenTelemetry's own. What joins the spans is a W3C
``traceparent``: on the streams in ``Record.trace``, to clients in the HTTP header of that name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import structlog

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Attribute = str | bool | int | float | None

HEADER = "traceparent"
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"

log = structlog.get_logger(__name__)

_tracer: Any = None
"""OpenTelemetry's tracer while tracing is on. Never the global one: libraries in this process keep their own."""


class Span:
    """A stretch of time of one trace; where tracing is off, nothing at all."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """What spans of other processes take as their parent."""
        if self._span is None:
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, **attributes: Attribute) -> None:
        """Set attributes, ``mor.`` before their names; those that are ``None`` are not known and left out."""
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def fail(self, reason: str) -> None:
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self, at: float | None = None) -> None:
        """``at``: Unix time in seconds; now where it is not given."""
        if self._span is not None:
            self._span.end(_nanoseconds(at))


OFF = Span()


def configure(service: str) -> None:
    """Turn tracing on for this process, where its environment asks for it. ``service`` is ``service.name``, unless
    ``OTEL_SERVICE_NAME`` gives another. What cannot be traced is warned of, and everything else works on."""
    global _tracer  # noqa: PLW0603
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(map(os.environ.get, _ENDPOINTS)):
        return
    asked = next((value for name in _PROTOCOLS if (value := os.environ.get(name))), _PROTOCOL)
    if asked != _PROTOCOL:
        log.warning("no traces: OTLP is spoken over HTTP only", asked=asked, cure=f"set {_PROTOCOLS[1]}={_PROTOCOL}")
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning("no traces: OpenTelemetry is not installed", error=str(error), cure="install mor-core[tracing]")
        return
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))  # bounded; the provider flushes at exit
    _tracer = provider.get_tracer("mor")
    log.info("tracing is on")


def begin(
    name: str,
    *,
    parent: str | None = None,
    kind: Kind = "internal",
    links: Sequence[str | None] = (),
    at: float | None = None,
    **attributes: Attribute,
) -> Span:
    """A span that its owner ends. ``parent``: a traceparent; an empty or unreadable one begins a trace of its own, none
    makes it a child of the span that is entered here. ``links``: traceparents of other spans that it belongs to.
    ``at``: Unix time in seconds at which it began, if not now."""
    if _tracer is None:
        return OFF
    from opentelemetry.trace import Link, SpanKind

    known = [link for traceparent in links if (link := _context(traceparent)) is not None]
    return Span(
        _tracer.start_span(
            name,
            context=_remote(parent),
            kind=SpanKind[kind.upper()],
            attributes=_named(attributes),
            links=[Link(context) for context in known],
            start_time=_nanoseconds(at),
        )
    )


@contextlib.contextmanager
def span(
    name: str,
    *,
    parent: str | None = None,
    kind: Kind = "internal",
    links: Sequence[str | None] = (),
    **attributes: Attribute,
) -> Iterator[Span]:
    """A span for the length of the body, which is entered: spans that begin in there are its children. An exception
    that leaves the body is noted."""
    if _tracer is None:
        yield OFF
        return
    from opentelemetry.trace import use_span

    begun = begin(name, parent=parent, kind=kind, links=links)
    begun.set(**attributes)
    with use_span(begun._span, end_on_exit=True):
        yield begun


def current() -> Span:
    """The span that is entered here."""
    if _tracer is None:
        return OFF
    from opentelemetry.trace import get_current_span

    found = get_current_span()
    return Span(found) if found.get_span_context().is_valid else OFF


def headers() -> dict[str, str]:
    """The HTTP header that makes a request part of the span that is entered here; empty where there is none."""
    traceparent = current().traceparent
    return {} if traceparent is None else {HEADER: traceparent}


def _remote(traceparent: str | None) -> Any:
    """OpenTelemetry's context with that parent; ``None`` is the context of here."""
    if traceparent is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: traceparent}, Context())


def _context(traceparent: str | None) -> Any:
    """The span that a traceparent names; ``None`` where it names none."""
    from opentelemetry.trace import get_current_span

    found = get_current_span(_remote(traceparent or "")).get_span_context()
    return found if found.is_valid else None


def _named(attributes: dict[str, Attribute]) -> dict[str, Any]:
    return {f"mor.{name}": value for name, value in attributes.items() if value is not None}


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)
