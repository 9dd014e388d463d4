"""docs/metrics.md, generated from the metrics that each service registers."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import mor_core.metrics
import mor_core.server_clock
import mor_core.stored
import mor_reward.metrics
import mor_rollout.metrics
import mor_router.metrics
import mor_trainer.metrics
from prometheus_client.metrics import MetricWrapperBase

SERVICES: dict[str, tuple[ModuleType, ...]] = {
    "all services": (mor_core.metrics,),
    "router, rollout and trainer": (mor_core.stored, mor_core.server_clock),
    "reward": (mor_reward.metrics,),
    "router": (mor_router.metrics,),
    "rollout": (mor_rollout.metrics,),
    "trainer": (mor_trainer.metrics,),
}
_SUFFIX = {"counter": "_total"}
_HEAD = """# Metrics

The Prometheus metrics of each service at `/metrics`; the page of run control includes those of the training
processes. Names end in their unit: seconds, bytes, nats, logits, ratio (0 to 1), tokens, updates. A histogram has
`_bucket`, `_sum` and `_count`, a summary `_sum` and `_count`: its mean is `rate(…_sum[5m]) / rate(…_count[5m])`. Labels
are bounded: client names, run names and fixed words; a run's series end with the run, a client's with its enrolment.
Python and process metrics (`python_…`, `process_…`) are exported too. [Runbooks](runbooks.md) lists the alerts.

`python docs/generate.py` writes this page from the code; a test fails when it is out of date.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    return _HEAD + "".join(_section(service, modules) for service, modules in SERVICES.items())


def names() -> dict[str, str]:
    """Return the kind of every metric by its full name."""
    found = [one for modules in SERVICES.values() for one in _metrics(*modules)]
    return {metric.name + _SUFFIX.get(metric.type, ""): metric.type for metric, _ in found}


def _section(service: str, modules: tuple[ModuleType, ...]) -> str:
    rows = [
        f"| `{metric.name}{_SUFFIX.get(metric.type, '')}` | {metric.type} | {', '.join(f'`{one}`' for one in labels)} "
        f"| {metric.documentation.rstrip('.')} |\n"
        for metric, labels in _metrics(*modules)
    ]
    return f"\n## {service}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n{''.join(rows)}"


def _metrics(*modules: ModuleType) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Yield family and label names of every metric in the modules' values, or in a dictionary among them."""
    for value in (value for module in modules for value in vars(module).values()):
        for metric in value.values() if isinstance(value, dict) else (value,):
            if isinstance(metric, MetricWrapperBase):
                [family] = metric.describe()
                yield family, tuple(metric._labelnames)
