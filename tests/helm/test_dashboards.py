"""Grafana dashboards: the committed files, and a series for every panel, by promtool."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import mor_rollout.metrics
import mor_router.metrics
import mor_trainer.metrics
import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from tests.helm import charts
from tests.helm.test_rules import PROMTOOL, needs_promtool

FILES = sorted((charts.CHARTS / "mor" / "files" / "dashboards").glob("*.json"))
LABELS = {"namespace": "mor", "instance": "i", "run": "r"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "summary": ("_sum", "_count"), "histogram": ("_sum", "_count")}


def generator(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboards", charts.CHARTS / "dashboards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "dashboards", module)
    spec.loader.exec_module(module)
    return module


def panels(file: Path) -> list[dict[str, Any]]:
    return [panel for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]


def label_names() -> dict[str, tuple[str, ...]]:
    """Return the labels of every series that a service may have."""
    found: dict[str, tuple[str, ...]] = {"up": ()}
    for module in (mor_rollout.metrics, mor_router.metrics, mor_trainer.metrics):
        for value in vars(module).values():
            for metric in value.values() if isinstance(value, dict) else (value,):
                if isinstance(metric, MetricWrapperBase):
                    [family] = metric.describe()
                    own = tuple(metric._labelnames)
                    found |= {family.name + suffix: own for suffix in SUFFIXES[family.type]}
                    if family.type == "histogram":
                        found[f"{family.name}_bucket"] = (*own, "le")
    return found


def series() -> list[dict[str, str]]:
    """Return a rising series for each metric; two buckets for a histogram."""
    found = []
    for name, own in label_names().items():
        for bound in ("1", "+Inf") if "le" in own else ("",):
            values = LABELS | {label: LABELS.get(label, "dead") for label in own} | ({"le": bound} if bound else {})
            labels = ",".join(f'{label}="{value}"' for label, value in values.items())
            found.append({"series": f"{name}{{{labels}}}", "values": "0+1x60"})
    return found


def filled(expression: str) -> str:
    """Replace Grafana's variables, as Grafana does."""
    return expression.replace("$__rate_interval", "5m").replace("$namespace", "mor").replace("$run", "r")


def test_the_committed_files_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    made = generator(monkeypatch).dashboards()
    assert {file.name for file in FILES} == set(made) and len(made) >= 2
    for file in FILES:
        assert file.read_text() == made[file.name], "run `python helm/generate.py`"


@needs_promtool
def test_every_panel_has_series(tmp_path: Path) -> None:
    expressions = sorted({filled(t["expr"]) for file in FILES for panel in panels(file) for t in panel["targets"]})
    assert len(expressions) > 50
    cases = [
        {"expr": f"count({one}) >= bool 1", "eval_time": "30m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for one in expressions
    ]
    (tmp_path / "rules.yaml").write_text("groups: []\n")
    tests = {"interval": "1m", "input_series": series(), "promql_expr_test": cases}
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": [tests]}))
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_panels_and_their_lines_are_distinct(file: Path) -> None:
    board = json.loads(file.read_text())
    numbers = [panel["id"] for panel in board["panels"]]
    assert len(set(numbers)) == len(numbers)
    known = label_names()
    for panel in panels(file):
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            names = re.findall(r"\b(?:mor_[a-z_]+|up)\b(?=\{)", target["expr"])
            assert names, target["expr"]
            labels = {*known[names[0]], "instance"}
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, target
            if "run" in labels and "by (" not in target["expr"]:
                assert 'run=~"$run"' in target["expr"], target


def test_a_dashboard_shows_one_namespace_and_the_runs_that_are_chosen() -> None:
    variables = {v["name"]: v for v in json.loads((FILES[0].parent / "run.json").read_text())["templating"]["list"]}
    assert variables["run"]["multi"] and variables["run"]["includeAll"]
    assert variables["run"]["query"] == 'label_values(mor_trainer_step{namespace="$namespace"}, run)'
    for file in FILES:
        for panel in panels(file):
            assert all('namespace="$namespace"' in target["expr"] for target in panel["targets"])
