"""Step metrics: one declaration for the worker, the API, Prometheus, Grafana, the dashboard and the documentation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import get_args

import mor_trainer.metrics
import pytest
from mor_core.runs import RunSpec
from mor_core.step_charts import CHARTS
from mor_core.step_metrics import (
    PROMETHEUS_PREFIX,
    ClientFigures,
    DomainFigures,
    Overlap,
    PhaseSeconds,
    SourceFigures,
    StageTimes,
    StepMetrics,
    declared,
    gauge_name,
)
from mor_core.wire import ClientScore, EventRecord, RewardRecord, TokenBlock
from mor_trainer.algorithm.loss import LossSums
from mor_trainer.control.kubeflow import trainer_status
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.reporting.measurement import FinishedStep, RunTotals, measure
from mor_trainer.update import step_timer
from mor_trainer.update.updater import UpdateReport
from prometheus_client import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from tests.trainer.records import order_of, rollout_of

ROOT = Path(__file__).parents[2]
MODELS = (StepMetrics, ClientFigures, DomainFigures, SourceFigures, PhaseSeconds, StageTimes, Overlap)
KEYS = {
    "StepMetrics": (
        "reward_mean reward_std group_reward_std zero_variance_ratio mixture_entropy clients domains sources kl "
        "entropy loss objective clip_low_ratio clip_high_ratio grad_norm lr importance_limited_ratio "
        "importance_ratio_mean importance_ratio_max engine_difference effective_sample_share skipped_updates "
        "response_tokens processed_tokens staleness_mean staleness_max response_length_mean queue_wait "
        "truncation_ratio weights_version groups_applied groups_skipped groups_dropped groups_retried "
        "groups_duplicate gate_version step_seconds seconds tokens_per_second begun_at stages overlap applied "
        "sampled_by client_agreement identical_ratio single_token_ratio"
    ),
    "ClientFigures": "reward_mean raw_mean weight seconds failures failures_total",
    "DomainFigures": "groups reward_mean weights",
    "SourceFigures": "groups reward_mean drawn drawn_ratio expected_ratio epochs",
    "PhaseSeconds": "waiting processing forward_backward optimiser publication checkpoint unaccounted",
    "StageTimes": "sampled scored trained",
    "Overlap": "sampled scored",
}
GAUGES = {
    "reward_mean": "reward_mean_logits",
    "reward_std": "reward_std_logits",
    "client_agreement": "client_agreement",
    "mixture_entropy": "mixture_entropy_nats",
    "zero_variance_ratio": "zero_variance_group_ratio",
    "kl": "kl_nats",
    "entropy": "entropy_nats",
    "clip_low_ratio": "clip_low_ratio",
    "clip_high_ratio": "clip_high_ratio",
    "importance_limited_ratio": "importance_limited_ratio",
    "grad_norm": "grad_norm",
    "lr": "learning_rate",
    "importance_ratio_mean": "importance_ratio_mean",
    "importance_ratio_max": "importance_ratio_max",
    "engine_difference": "engine_difference_nats",
    "effective_sample_share": "effective_sample_ratio",
    "staleness_max": "staleness_updates",
    "response_length_mean": "response_length_tokens",
    "truncation_ratio": "truncation_ratio",
    "identical_ratio": "identical_response_ratio",
    "single_token_ratio": "single_token_response_ratio",
    "queue_wait": "queue_wait_seconds",
    "tokens_per_second": "tokens_per_second",
    "weights_version": "weights_version",
    "gate_version": "gate_version",
    "groups_applied": "groups_applied",
    "groups_duplicate": "groups_duplicate",
    "groups_skipped": "groups_skipped",
    "groups_dropped": "groups_dropped",
    "groups_retried": "groups_retried",
    "seconds": "step_share_seconds",
}


def registered() -> set[str]:
    """Names of all Prometheus metrics of run control, without a counter's suffix."""
    values = [
        metric
        for value in vars(mor_trainer.metrics).values()
        for metric in (value.values() if isinstance(value, dict) else (value,))
    ]
    return {metric.describe()[0].name for metric in values if isinstance(metric, MetricWrapperBase)}


def finished_step() -> FinishedStep:
    """A step of two groups, one of which a client failed."""
    taken = []
    for number, reward in enumerate((1.0, 3.0)):
        rollout = rollout_of(f"g{number}")
        prompt = rollout.prompt.model_copy(update={"domain": "charts"})
        answer = {"status": "ok", "raw": (reward,), "calibrated": (reward,), "weight": 1.0, "seconds": 0.5}
        record = RewardRecord(
            run="r",
            group_id=f"g{number}",
            stamps={"rollout": 10.0 + number, "router": 20.0 + number},
            rollout=rollout.model_copy(update={"prompt": prompt}),
            rewards=(reward, -reward),
            clients=(ClientScore(client="alpha", **answer), ClientScore(client="beta", status="timeout")),
            gate_version=2,
            fusion="weighted",
            entropy=0.0,
        )
        tokens = TokenBlock(prompt_token_ids=(1,), response_token_ids=((1, 2),), response_logprobs=((-1.0, -1.0),))
        taken.append(
            ScoredGroup(number=number, staleness=number, record=record, tokens=tokens, received_at=22.0 + number)
        )
    update = UpdateReport(
        advantages=[[1.0]] * 2, sums=LossSums(tokens=4, objective=0.5, clipped_low=1), loss=math.nan, entropy=1.0,
        kl=0.1, engine_difference=0.01, grad_norm=math.inf, lr=1e-5, skipped=0, processed_tokens=8,
        micro_batch_tokens=64, divided_groups=0,
    )  # fmt: skip
    phases = PhaseSeconds(**dict.fromkeys(PhaseSeconds.model_fields, 0.5))
    totals = RunTotals(3, 10, 8, 1, 0, 0, 0)
    order = order_of(4, 40)
    return FinishedStep(taken, [], update, 5.0, (24.0, 25.0), 3.5, phases, totals, order)


def measured() -> StepMetrics:
    return measure(finished_step(), gate_version=2, failures_total={"beta": {"timeout": 7}}, updates=[(10.5, 11.5)])


def test_names_in_json_and_in_prometheus_do_not_change() -> None:
    for model in MODELS:
        assert set(model.model_fields) == set(KEYS[model.__name__].split()), model
    gauges = {name: metric.gauge for name, metric, _ in declared(StepMetrics) if metric.gauge}
    assert gauges == GAUGES
    clients = {name: metric.gauge for name, metric, _ in declared(ClientFigures) if metric.gauge}
    assert clients == {"reward_mean": "client_reward_mean_logits", "weight": "client_weight_ratio"}
    sources = {metric.gauge for _, metric, _ in declared(SourceFigures) if metric.gauge}
    assert sources == {
        "source_reward_mean_logits", "source_drawn_groups", "source_drawn_ratio", "source_expected_ratio",
        "source_epochs",
    }  # fmt: skip


def test_a_finished_step_sets_every_declared_metric() -> None:
    metrics = measured()
    parts = (
        metrics,
        metrics.clients["alpha"],
        metrics.domains["charts"],
        metrics.sources["source-0"],
        metrics.seconds,
        metrics.stages,
        metrics.overlap,
    )
    for part in parts:
        assert part.model_fields_set == set(type(part).model_fields), type(part)
    assert (metrics.reward_mean, metrics.reward_std) == (0, pytest.approx(math.sqrt(5)))
    assert metrics.clients["beta"].model_dump(include={"reward_mean", "failures", "failures_total"}) == {
        "reward_mean": None, "failures": {"timeout": 2}, "failures_total": {"timeout": 7},
    }  # fmt: skip
    assert metrics.domains["charts"].weights == {"alpha": 1.0, "beta": 0.0}
    assert metrics.sources["source-0"] == SourceFigures(
        groups=1, reward_mean=0, drawn=5, drawn_ratio=0.5, expected_ratio=0.5, epochs=1.25
    )
    assert metrics.queue_wait == 2
    assert metrics.stages == StageTimes(sampled=(10, 11), scored=(20, 21), trained=(24, 25))
    assert metrics.overlap == Overlap(sampled=0.5, scored=0)


def test_a_number_that_is_not_finite_is_null_in_json() -> None:
    found = json.loads(measured().model_dump_json())
    assert (found["loss"], found["grad_norm"]) == (None, None)
    assert set(found) == set(StepMetrics.model_fields), "null is there, absent is only what a worker does not report"


def test_metrics_of_a_newer_worker_are_left_out_and_those_of_an_older_one_are_absent() -> None:
    found = StepMetrics.read(
        {"kl": 0.5, "surprise": 1, "lr": {"of": "another type"}, "seconds": {"waiting": 1, "dreaming": 2}}
    )
    assert found.model_dump() == {"kl": 0.5, "seconds": {"waiting": 1}}
    assert found.numbers() == {"kl": 0.5}


def test_a_misspelt_metric_is_refused_where_it_is_set_and_where_it_is_drawn() -> None:
    with pytest.raises(ValueError, match="reward_meen"):
        StepMetrics(reward_meen=1)  # type: ignore[call-arg]
    with pytest.raises(KeyError, match="reward_meen"):
        gauge_name(StepMetrics, "reward_meen")


def test_every_declared_metric_is_registered_under_a_name_that_ends_in_its_unit() -> None:
    names = registered()
    for model in MODELS:
        for name, metric, text in declared(model):
            assert text, f"{name} has no docstring"
            prometheus = metric.gauge or metric.histogram
            if prometheus is not None:
                assert f"{PROMETHEUS_PREFIX}{prometheus}" in names
                if metric.unit in ("logits", "ratio", "seconds", "tokens", "updates"):
                    assert prometheus.endswith(metric.unit), (name, prometheus)


def test_rules_panels_and_runbooks_name_registered_metrics_only() -> None:
    suffixes = ("_total", "_bucket", "_sum", "_count", "")
    known = {f"{name}{suffix}" for name in registered() for suffix in suffixes}
    files = ROOT / "helm" / "mor" / "files"
    for path in (files / "rules.yaml", *sorted(files.glob("dashboards/*.json")), ROOT / "docs" / "runbooks.md"):
        found = set(re.findall(r"\bmor_trainer_\w+", path.read_text()))
        assert found <= known, f"{path.name}: no metric {found - known}"
        assert found, path.name


def test_every_metric_is_documented() -> None:
    text = (ROOT / "docs" / "status.md").read_text()
    for prefix, model in (
        ("", StepMetrics),
        ("clients.{client}.", ClientFigures),
        ("domains.{domain}.", DomainFigures),
    ):
        for name, metric, _ in declared(model):
            assert f"| `{prefix}{name}` | {metric.unit} |" in text
    for name in StepMetrics.model_fields:
        assert f"| `{name}" in text


def test_every_chart_has_lines_and_every_line_a_chart() -> None:
    drawn = [metric.chart for model in MODELS for _, metric, _ in declared(model) if metric.chart]
    assert {chart.id for chart in drawn} == {chart.id for chart in CHARTS}
    assert len({chart.id for chart in CHARTS}) == len(CHARTS)
    for _, metric, _ in declared(StepMetrics):
        assert metric.line is None or metric.chart is not None


def test_the_timer_of_a_step_has_the_phases_that_are_declared() -> None:
    assert set(get_args(step_timer.Phase)) == set(PhaseSeconds.model_fields)


def test_openapi_documents_each_metric_with_its_unit() -> None:
    properties = StepMetrics.model_json_schema(mode="serialization")["properties"]
    assert properties["kl"]["x-unit"] == "nats a token"
    assert all(properties[name]["description"] for name in StepMetrics.model_fields if name != "seconds")


def test_plain_numbers_are_the_metrics_of_the_kubeflow_status() -> None:
    found = trainer_status(progress=0.5, eta_s=None, metrics=measured(), updated_at=0.0)
    names = {metric.name for metric in found.metrics}
    assert {"reward_mean", "groups_applied", "begun_at"} <= names
    assert not names & {"loss", "clients", "seconds", "applied"}


def test_sources_have_gauges_until_the_run_is_over_and_others_than_those_of_the_run_have_none() -> None:
    sources = [{"name": "easy", "prompts": "/a"}, {"name": "hard", "prompts": "/b"}]
    spec = RunSpec.model_validate({"name": "r", "model": "/m", "sources": sources})
    found = {"easy": {"drawn_ratio": 0.75, "reward_mean": None}, "forged": {"drawn_ratio": 0.25}}
    event = EventRecord(run="r", group_id="r/1", kind="step", step=1, stamps={"trainer": 1.0}, data={"sources": found})
    mor_trainer.metrics.observe(event, spec)
    exported = generate_latest().decode()
    assert 'mor_trainer_source_drawn_ratio{run="r",source="easy"} 0.75' in exported
    assert "forged" not in exported
    mor_trainer.metrics.forget("r")
    assert 'source="easy"' not in generate_latest().decode()
