"""Tracing: off and weightless by default, on by environment, and never in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.collector import collecting

SPANS = """
import json, sys
from mor_core import tracing
tracing.configure("mor-test")
with tracing.span("outer", parent="", run="r", unknown=None) as outer:
    sent = tracing.headers()
    with tracing.span("inner", links=[None, "garbage", outer.traceparent]):
        pass
    apart = tracing.begin("apart", parent="garbage", at=1.5)
    apart.fail("why")
    apart.end(2.5)
far = tracing.begin("far", parent=outer.traceparent, kind="consumer")
far.end()
print(json.dumps([outer.traceparent, sent, sorted(name for name in sys.modules if name.startswith("opentelemetry"))]))
"""


def run(**environment: str) -> tuple[str | None, dict[str, str], list[str], str]:
    """Standard output and standard error of the script."""
    done = subprocess.run(
        [sys.executable, "-c", SPANS], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    traceparent, sent, modules = json.loads(done.stdout.splitlines()[-1])
    return traceparent, sent, modules, done.stdout + done.stderr


@pytest.mark.parametrize(
    "environment", [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}]
)
def test_it_is_off_by_default_and_then_nothing_is_loaded(environment: dict[str, str]) -> None:
    traceparent, sent, modules, _ = run(**environment)
    assert (traceparent, sent, modules) == (None, {}, [])


def test_spans_reach_the_collector_that_the_environment_names() -> None:
    with collecting() as collector:
        traceparent, sent, _, _ = run(OTEL_EXPORTER_OTLP_ENDPOINT=collector.address)
        [outer], [inner] = collector.named("outer"), collector.named("inner")
        [apart], [far] = collector.named("apart"), collector.named("far")
    assert traceparent is not None and traceparent.startswith(f"00-{outer.trace}-{outer.id}-0")
    assert sent == {"traceparent": traceparent}
    assert (outer.service, outer.parent, outer.attributes) == ("mor-test", "", {"mor.run": "r"})
    assert (inner.trace, inner.parent, inner.links) == (outer.trace, outer.id, (outer.id,))
    assert (far.trace, far.parent) == (outer.trace, outer.id)
    assert apart.parent == "" and apart.trace != outer.trace, "an unreadable parent begins its own trace"
    assert (apart.began, apart.ended, apart.failed) == (1_500_000_000, 2_500_000_000, True)


def test_the_environment_may_name_the_service() -> None:
    with collecting() as collector:
        run(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.address}/v1/traces", OTEL_SERVICE_NAME="mine")
        assert {span.service for span in collector.spans} == {"mine"}


def test_an_unsupported_protocol_is_a_warning() -> None:
    traceparent, _, _, logged = run(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_PROTOCOL="grpc"
    )
    assert traceparent is None
    assert "set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf" in logged


def test_a_missing_package_is_a_warning() -> None:
    script = f"import sys; sys.modules['opentelemetry.sdk.trace'] = None\n{SPANS}"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "install mor-core[tracing]" in done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[0] is None


def test_an_unreachable_collector_delays_nothing() -> None:
    traceparent, _, _, _ = run(OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    assert traceparent is not None


FAILING = """
import contextlib, sys
from mor_core import tracing
tracing.configure("mor-test")
mark = sys.argv[1]
with contextlib.suppress(ValueError), tracing.span("work", parent="", address=f"redis://mor:{mark}@redis/0"):
    raise ValueError(f"cannot encode {mark!r}")
lost = tracing.begin("lost")
lost.fail(f"GET https://host/?token={mark}")
lost.end()
"""


def test_no_exception_and_no_attribute_takes_data_or_secrets_to_the_collector() -> None:
    with collecting() as collector:
        environment = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address}
        command = [sys.executable, "-c", FAILING, "mark-88131-of-mine"]
        subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
        [work], [lost] = collector.named("work"), collector.named("lost")
    assert (work.failed, lost.failed) == (True, True)
    assert "ValueError in" in work.reason
    assert lost.reason == "GET https://host/?token=[hidden]"
    assert b"88131" not in b"".join(collector.bodies)
