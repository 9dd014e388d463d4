"""OpenTelemetry traces: one for each group, from its prompt to the gradient, over all services and streams.

Tracing is on where ``OTEL_EXPORTER_OTLP_ENDPOINT`` or ``OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`` names a collector; without
it nothing is imported. Every other ``OTEL_*`` variable is OpenTelemetry's own. A W3C ``traceparent`` joins the spans:
in ``Record.trace`` on the streams, in the HTTP header of that name to clients.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import structlog

from mor_core.failures import describe_failure
from mor_core.hidden_secrets import hide_secrets

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
    """Span of a trace; does nothing where tracing is off."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    @property
    def traceparent(self) -> str | None:
        """Identity that spans of other processes take as their parent."""
        if self._span is None:
            return None
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def set(self, **attributes: Attribute) -> None:
        """Set attributes with the prefix ``mor.``; a value of ``None`` is unknown and left out."""
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def fail(self, reason: str) -> None:
        """Mark the span as failed."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, hide_secrets(reason)))

    def end(self, at: float | None = None) -> None:
        """End the span, now or at the Unix time ``at``, seconds."""
        if self._span is not None:
            self._span.end(_nanoseconds(at))


OFF = Span()


def configure(service: str) -> None:
    """Turn tracing on for this process if its environment names a collector.

    ``service`` is ``service.name``, unless ``OTEL_SERVICE_NAME`` gives another. Where tracing cannot work, a warning is
    logged and the process continues without it.
    """
    global _tracer  # noqa: PLW0603
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or not any(map(os.environ.get, _ENDPOINTS)):
        return
    requested = next((value for name in _PROTOCOLS if (value := os.environ.get(name))), _PROTOCOL)
    if requested != _PROTOCOL:
        log.warning("no traces: only OTLP over HTTP works", protocol=requested, cure=f"set {_PROTOCOLS[1]}={_PROTOCOL}")
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning(
            "no traces: OpenTelemetry is not installed", error=describe_failure(error), cure="install mor-core[tracing]"
        )
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
    """Begin a span that the caller ends.

    ``parent``: a traceparent; an empty or unreadable one begins a new trace, ``None`` makes the span a child of the
    current one. ``links``: traceparents of other spans that it belongs to. ``at``: its begin in Unix time, seconds; now
    by default.
    """
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
    """Make a span the current one for the length of the body; spans that begin there are its children.

    It records an exception that leaves the body, without the data that its message may quote.
    """
    if _tracer is None:
        yield OFF
        return
    from opentelemetry.trace import use_span

    begun = begin(name, parent=parent, kind=kind, links=links)
    begun.set(**attributes)
    with use_span(begun._span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield begun
        except Exception as error:
            reason = describe_failure(error)
            begun._span.add_event(
                "exception", {"exception.type": type(error).__qualname__, "exception.message": reason}
            )
            begun.fail(reason)
            raise


def current() -> Span:
    """Return the current span."""
    if _tracer is None:
        return OFF
    from opentelemetry.trace import get_current_span

    found = get_current_span()
    return Span(found) if found.get_span_context().is_valid else OFF


def headers() -> dict[str, str]:
    """Return the HTTP header that makes a request part of the current span; empty where there is none."""
    traceparent = current().traceparent
    return {} if traceparent is None else {HEADER: traceparent}


def _remote(traceparent: str | None) -> Any:
    """Return OpenTelemetry's context with that parent; ``None`` means the current context."""
    if traceparent is None:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: traceparent}, Context())


def _context(traceparent: str | None) -> Any:
    """Return the context of the span that a traceparent names, or ``None``."""
    from opentelemetry.trace import get_current_span

    found = get_current_span(_remote(traceparent or "")).get_span_context()
    return found if found.is_valid else None


def _named(attributes: dict[str, Attribute]) -> dict[str, Any]:
    return {
        f"mor.{name}": hide_secrets(value) if isinstance(value, str) else value
        for name, value in attributes.items()
        if value is not None
    }


def _nanoseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e9)
