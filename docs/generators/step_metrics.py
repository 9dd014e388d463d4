"""Table of step metrics in docs/status.md, and the dashboard's TypeScript, from the declarations in mor_core."""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Union, get_args, get_origin

from mor_core.step_charts import CHARTS, Chart
from mor_core.step_metrics import PROMETHEUS_PREFIX, Metric, PhaseSeconds, StepMetrics, declared
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_TYPESCRIPT_HEAD = """\
/** Step metrics and their charts. Written by `python docs/generate.py` from mor_core/step_metrics.py: do not edit. */

import type { Figure } from "./types.ts";
"""
_TYPESCRIPT_CHART = """\
export interface DeclaredChart {
  id: ChartId;
  title: string;
  unit: string;
  note: string;
  stacked: boolean;
  lines: { metric: NumericMetric; name: string }[];
}
"""


def table() -> str:
    """Write the step metrics as a Markdown table."""
    rows = [
        f"| `{name}` | {metric.unit if metric else ''} | {_prometheus(metric)} | {_chart(metric)} | {_text(field)} |"
        for name, field, metric in _rows(StepMetrics)
    ]
    return "\n".join(("| metric | unit | Prometheus | chart | meaning |", "|---|---|---|---|---|", *rows)) + "\n"


def typescript() -> str:
    """Write the dashboard's ``step_metrics.ts``: types of the metrics, and the charts with their lines."""
    numeric = [name for name, field in StepMetrics.model_fields.items() if _type(field.annotation) == "Figure"]
    return "\n".join(
        (
            _TYPESCRIPT_HEAD,
            *(_interface(model) for model in _models(StepMetrics)),
            _union("NumericMetric", numeric),
            _union("ChartId", [chart.id for chart in CHARTS]),
            f"export const PHASES = {json.dumps([*PhaseSeconds.model_fields])} as const;\n",
            _TYPESCRIPT_CHART,
            "export const SECTIONS: { title: string; charts: DeclaredChart[] }[] = [",
            *(_section(title, charts) for title, charts in groupby(CHARTS, key=lambda chart: chart.section)),
            "];\n",
        )
    )


def _union(name: str, values: list[str]) -> str:
    return f"export type {name} =" + "".join(f"\n  | {json.dumps(value)}" for value in values) + ";\n"


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo, Metric | None]]:
    """Yield every metric with its name in JSON; a metric of a map has the key's kind in braces."""
    metrics = {name: metric for name, metric, _ in declared(model)}
    for name, field in model.model_fields.items():
        inner = _inner(field.annotation)
        key = f".{{{name.removesuffix('s')}}}" if get_origin(field.annotation) is dict and inner else ""
        if inner is None or name in metrics:
            yield f"{prefix}{name}", field, metrics.get(name)
        if inner is not None:
            yield from _rows(inner, f"{prefix}{name}{key}.")


def _inner(annotation: Any) -> type[BaseModel] | None:
    """Return the model that a field holds, itself or as the values of a map."""
    value = get_args(annotation)[1] if get_origin(annotation) is dict else annotation
    return value if isinstance(value, type) and issubclass(value, BaseModel) else None


def _models(model: type[BaseModel]) -> list[type[BaseModel]]:
    """List the model after those that it holds."""
    inner = [_inner(field.annotation) for field in model.model_fields.values()]
    return [*dict.fromkeys(one for found in inner if found is not None for one in _models(found)), model]


def _prometheus(metric: Metric | None) -> str:
    name = metric and (metric.gauge or metric.histogram)
    return f"`{PROMETHEUS_PREFIX}{name}`" if name else ""


def _chart(metric: Metric | None) -> str:
    return metric.chart.title if metric and metric.chart else ""


def _text(field: FieldInfo) -> str:
    if not field.description:
        raise SystemExit("a step metric has no docstring")
    return " ".join(field.description.split()).replace("|", "\\|").rstrip(".")


def _interface(model: type[BaseModel]) -> str:
    fields = "".join(
        f"  /** {_text(field)}. */\n  {name}?: {_type(field.annotation)};\n"
        for name, field in model.model_fields.items()
    )
    return f"/** {' '.join((model.__doc__ or '').split())} */\nexport interface {model.__name__} {{\n{fields}}}\n"


def _type(annotation: Any) -> str:
    """Return the TypeScript of a field's type."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        known = [one for one in inner if one is not types.NoneType]
        return "Figure" if set(known) <= {int, float} else f"{_type(known[0])} | null"
    if origin is dict:
        return f"Record<string, {_type(inner[1])}>"
    if origin is tuple:
        return f"{_type(inner[0])}[]" if inner[1] is Ellipsis else f"[{', '.join(map(_type, inner))}]"
    if hasattr(annotation, "__metadata__"):
        return _type(annotation.__origin__)
    return {str: "string", int: "number", float: "number"}.get(annotation) or str(annotation.__name__)


def _section(title: str, charts: Iterable[Chart]) -> str:
    declarations = "".join(map(_declared_chart, charts))
    return f"  {{\n    title: {json.dumps(title)},\n    charts: [\n{declarations}    ],\n  }},"


def _declared_chart(chart: Chart) -> str:
    lines = [
        f"{{ metric: {json.dumps(name)}, name: {json.dumps(metric.line)} }}"
        for name, metric, _ in declared(StepMetrics)
        if metric.chart is chart and metric.line is not None
    ]
    return (
        f"      {{\n        id: {json.dumps(chart.id)},\n        title: {json.dumps(chart.title)},\n"
        f"        unit: {json.dumps(chart.unit)},\n        note: {json.dumps(chart.note)},\n"
        f"        stacked: {json.dumps(chart.stacked)},\n        lines: [{', '.join(lines)}],\n      }},\n"
    )
