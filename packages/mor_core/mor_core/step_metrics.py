"""Metrics of a training step, each declared once: name, type, unit, help text, Prometheus metric and dashboard chart.

A field of ``StepMetrics`` with a ``Metric`` is the declaration. These follow from it:

- the JSON of a step event and of the status API, and their OpenAPI documentation;
- the gauges of run control (``mor_trainer.metrics``) and their names in Grafana's panels (``helm/dashboards.py``);
- the dashboard's charts (``services/trainer/dashboard/src/step_metrics.ts``) and the table in ``docs/status.md``, both
  written by ``python docs/generate.py``.

A new metric is a field here and the line of ``mor_trainer.reporting.measurement`` that computes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from mor_core.step_charts import (
    CLIP,
    ENTROPY,
    FLAT,
    GRADIENT,
    IDENTICAL,
    KL,
    LENGTH,
    MIXTURE_ENTROPY,
    REWARD,
    SOURCE_GROUPS,
    SOURCE_REWARD,
    SPREAD,
    STALENESS,
    STEP_TIME,
    THROUGHPUT,
    TRUNCATION,
    WEIGHTS,
    Chart,
)
from mor_core.visibility import OWN_ROWS
from mor_core.wire import Documented

PROMETHEUS_PREFIX = "mor_trainer_"


@dataclass(frozen=True)
class Metric:
    """Declaration of a metric, in addition to the type and the docstring of its field."""

    unit: str
    """Empty for a number without one."""
    gauge: str | None = None
    """Name of its Prometheus gauge after ``mor_trainer_``, which ends in the unit."""
    histogram: str | None = None
    """Name of its Prometheus histogram after ``mor_trainer_``."""
    label: str | None = None
    """Prometheus label of a map's keys, besides ``run``."""
    chart: Chart | None = None
    line: str | None = None
    """Name of its line in the chart; none where the lines have the names of a map's keys."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        found = handler(schema)
        return {**found, "x-unit": self.unit} if self.unit else found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


Number = Annotated[float | None, Field(allow_inf_nan=True), AfterValidator(_finite)]
"""Number; null, never 0, while it is unknown. JSON has no NaN, so a number that is not finite counts as unknown."""


class _Sparse(Documented):
    """Model whose JSON has the fields that were set: a metric that a worker does not report is absent, not null."""

    @model_serializer(mode="wrap")
    def _without_unset(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialise(self).items() if name in self.model_fields_set}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Document the fields; the serialiser above would hide them behind a plain object."""
        return handler(_without_serialiser(schema))


def _without_serialiser(schema: Any) -> Any:
    known = {name: value for name, value in schema.items() if name != "serialization"}
    return {**known, "schema": _without_serialiser(known["schema"])} if "schema" in known else known


class ClientFigures(Documented):
    """A client in one step."""

    reward_mean: Annotated[
        Number, Metric("logits", gauge="client_reward_mean_logits", label="client", chart=REWARD)
    ] = None
    """Mean calibrated score of the client; null where it answered nothing."""
    raw_mean: Number = None
    """Mean score of the client as served."""
    weight: Annotated[Number, Metric("ratio", gauge="client_weight_ratio", label="client", chart=WEIGHTS)] = None
    """Mean share of the client in the mixture."""
    seconds: Annotated[Number, Metric("seconds")] = None
    """Mean time in which the client answered the router."""
    failures: Annotated[dict[str, int], Metric("groups")] = Field(default_factory=dict)
    """Groups of the step that the client failed, by status."""
    failures_total: Annotated[dict[str, int], Metric("groups")] = Field(default_factory=dict)
    """Groups of the run that the client failed, by status."""


class DomainFigures(_Sparse):
    """The prompts of one domain label in one step."""

    groups: Annotated[int | None, Metric("groups")] = None
    """Scored groups."""
    reward_mean: Annotated[Number, Metric("logits")] = None
    """Mean fused reward."""
    weights: Annotated[dict[str, Number], Metric("ratio", chart=WEIGHTS)] = Field(default_factory=dict)
    """Mean share of each client in the mixture."""


class SourceFigures(_Sparse):
    """A source of prompts in one step, and in the run up to it."""

    groups: Annotated[int | None, Metric("groups", chart=SOURCE_GROUPS)] = None
    """Scored groups of the step."""
    reward_mean: Annotated[
        Number, Metric("logits", gauge="source_reward_mean_logits", label="source", chart=SOURCE_REWARD)
    ] = None
    """Mean fused reward of the step; null without a group of the source."""
    drawn: Annotated[int | None, Metric("groups", gauge="source_drawn_groups", label="source")] = None
    """Groups of the run that were drawn from the source, those under way included."""
    drawn_ratio: Annotated[Number, Metric("ratio", gauge="source_drawn_ratio", label="source")] = None
    """Share of the source in all groups that were drawn."""
    expected_ratio: Annotated[Number, Metric("ratio", gauge="source_expected_ratio", label="source")] = None
    """Share that the weights up to here ask for."""
    epochs: Annotated[Number, Metric("", gauge="source_epochs", label="source")] = None
    """Passes over the rows of the source."""


class PhaseSeconds(_Sparse):
    """Seconds of one step by phase; they add up to the step."""

    waiting: Number = None
    """Wait for sampled and scored groups."""
    processing: Number = None
    """Encoding, batching, reports, and control of the run."""
    forward_backward: Number = None
    """Forward and backward passes."""
    optimiser: Number = None
    """Optimiser updates."""
    publication: Number = None
    """Publication of a weights version, and the wait for an earlier one that is still being written."""
    checkpoint: Number = None
    """Writing of a checkpoint."""
    unaccounted: Number = None
    """Time of no phase."""


class StageTimes(_Sparse):
    """First and last Unix time, in seconds, at which the step's groups left a stage."""

    sampled: tuple[float, float] | None = None
    """Sampling by the rollout service."""
    scored: tuple[float, float] | None = None
    """Scoring by the router."""
    trained: tuple[float, float] | None = None
    """Beginning and end of the update."""


class Overlap(_Sparse):
    """Share of the step's groups that left a stage while an update was being computed."""

    sampled: Number = None
    """Share that was sampled meanwhile."""
    scored: Number = None
    """Share that was scored meanwhile."""


class StepMetrics(_Sparse):
    """Metrics of a training step. An unknown value is null, never 0."""

    reward_mean: Annotated[Number, Metric("logits", gauge="reward_mean_logits", chart=REWARD, line="fused")] = None
    """Mean fused reward of the step."""
    reward_std: Annotated[Number, Metric("logits", gauge="reward_std_logits", chart=SPREAD, line="step")] = None
    """Standard deviation of the fused rewards of the step."""
    group_reward_std: Annotated[Number, Metric("logits", chart=SPREAD, line="group")] = None
    """Mean standard deviation of the fused rewards within a group."""
    zero_variance_ratio: Annotated[
        Number, Metric("ratio", gauge="zero_variance_group_ratio", chart=FLAT, line="groups")
    ] = None
    """Share of groups whose rewards are all alike."""
    client_agreement: Annotated[Number, Metric("", gauge="client_agreement")] = None
    """Mean correlation of two clients' scores of a group, -1 to 1; null where no two clients have weight and a
    preference."""
    mixture_entropy: Annotated[
        Number, Metric("nats", gauge="mixture_entropy_nats", chart=MIXTURE_ENTROPY, line="entropy")
    ] = None
    """Mean entropy of the mixture weights."""
    clients: Annotated[dict[str, ClientFigures], OWN_ROWS] = Field(default_factory=dict)
    """Figures of each client."""
    domains: dict[str, DomainFigures] = Field(default_factory=dict)
    """Figures of each domain label."""
    sources: dict[str, SourceFigures] = Field(default_factory=dict)
    """Figures of each source of prompts; empty for a run with one file."""

    kl: Annotated[Number, Metric("nats a token", gauge="kl_nats", chart=KL, line="KL")] = None
    """Mean KL of the policy to the reference, per token."""
    entropy: Annotated[Number, Metric("nats a token", gauge="entropy_nats", chart=ENTROPY, line="entropy")] = None
    """Mean entropy of the sampling distribution, per token."""
    loss: Annotated[Number, Metric("")] = None
    """Loss, summed over the step's updates."""
    objective: Annotated[Number, Metric("")] = None
    """The loss's objective before the KL penalty, summed over the step's updates."""
    clip_low_ratio: Annotated[Number, Metric("ratio", gauge="clip_low_ratio", chart=CLIP, line="low")] = None
    """Share of tokens clipped below."""
    clip_high_ratio: Annotated[Number, Metric("ratio", gauge="clip_high_ratio", chart=CLIP, line="high")] = None
    """Share of tokens clipped above."""
    importance_limited_ratio: Annotated[
        Number, Metric("ratio", gauge="importance_limited_ratio", chart=CLIP, line="limited")
    ] = None
    """Share of tokens whose ratio trainer/engine was truncated or masked."""
    importance_ratio_mean: Annotated[Number, Metric("", gauge="importance_ratio_mean")] = None
    """Mean raw ratio trainer/engine."""
    importance_ratio_max: Annotated[Number, Metric("", gauge="importance_ratio_max")] = None
    """Largest raw ratio trainer/engine."""
    engine_difference: Annotated[Number, Metric("nats a token", gauge="engine_difference_nats")] = None
    """Mean absolute difference of the log-probabilities of engine and trainer from the same weights, per token; null
    without a group that the newest weights sampled."""
    effective_sample_share: Annotated[Number, Metric("ratio", gauge="effective_sample_ratio")] = None
    """Effective sample size over sample size; 1 where trainer and engine agree."""
    grad_norm: Annotated[Number, Metric("", gauge="grad_norm", chart=GRADIENT, line="norm")] = None
    """Gradient norm before clipping."""
    lr: Annotated[Number, Metric("", gauge="learning_rate")] = None
    """Learning rate."""
    skipped_updates: Annotated[int | None, Metric("updates")] = None
    """Updates left out because loss or gradient was not finite."""

    response_tokens: Annotated[int | None, Metric("tokens")] = None
    """Response tokens trained on."""
    processed_tokens: Annotated[int | None, Metric("tokens")] = None
    """Tokens that went through the policy, prompts and padding included."""
    response_length_mean: Annotated[
        Number, Metric("tokens", gauge="response_length_tokens", chart=LENGTH, line="mean")
    ] = None
    """Mean response length."""
    truncation_ratio: Annotated[
        Number, Metric("ratio", gauge="truncation_ratio", chart=TRUNCATION, line="truncated")
    ] = None
    """Share of responses cut at max_tokens."""
    identical_ratio: Annotated[
        Number, Metric("ratio", gauge="identical_response_ratio", chart=IDENTICAL, line="one text")
    ] = None
    """Share of the step's responses that are its most frequent text; null where all groups have the same prompt."""
    single_token_ratio: Annotated[
        Number, Metric("ratio", gauge="single_token_response_ratio", chart=IDENTICAL, line="one token")
    ] = None
    """Share of responses of one token at most, the end not counted."""
    staleness_mean: Annotated[Number, Metric("updates", chart=STALENESS, line="mean")] = None
    """Mean staleness of the trained groups."""
    staleness_max: Annotated[int | None, Metric("updates", gauge="staleness_updates", chart=STALENESS, line="max")] = (
        None
    )
    """Largest staleness of a trained group."""
    queue_wait: Annotated[Number, Metric("seconds", gauge="queue_wait_seconds")] = None
    """Mean time from scoring to reading of the step's groups."""

    weights_version: Annotated[int | None, Metric("", gauge="weights_version")] = None
    """Newest published weights version."""
    gate_version: Annotated[int | None, Metric("", gauge="gate_version")] = None
    """Newest gate version that scored a group of the step; rewards of different ones are not comparable."""
    groups_applied: Annotated[int | None, Metric("groups", gauge="groups_applied")] = None
    """Groups of this run that were trained on."""
    groups_skipped: Annotated[int | None, Metric("groups", gauge="groups_skipped")] = None
    """Groups of this run replaced because their rewards were all alike."""
    groups_dropped: Annotated[int | None, Metric("groups", gauge="groups_dropped")] = None
    """Groups dropped in this run."""
    groups_retried: Annotated[int | None, Metric("groups", gauge="groups_retried")] = None
    """Groups issued again in this run."""
    groups_duplicate: Annotated[int | None, Metric("groups", gauge="groups_duplicate")] = None
    """Groups of this run that came back and were not expected."""
    applied: tuple[str, ...] = ()
    """Ids of the groups that the step trained on."""
    sampled_by: tuple[int, ...] = ()
    """Weights versions that sampled the step's groups."""

    step_seconds: Annotated[Number, Metric("seconds", histogram="step_seconds")] = None
    """Duration of the step."""
    seconds: Annotated[PhaseSeconds, Metric("seconds", gauge="step_share_seconds", label="share", chart=STEP_TIME)] = (
        Field(default_factory=PhaseSeconds)
    )
    """Seconds of the step by phase."""
    tokens_per_second: Annotated[
        Number, Metric("tokens a second", gauge="tokens_per_second", chart=THROUGHPUT, line="tokens/s")
    ] = None
    """Response tokens trained on per second."""
    begun_at: Annotated[Number, Metric("seconds")] = None
    """Unix time at which the step began."""
    stages: StageTimes = Field(default_factory=StageTimes)
    """Times at which the step's groups left each stage."""
    overlap: Overlap = Field(default_factory=Overlap)
    """Overlap of sampling and scoring with updates."""

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Parse the metrics that a worker of any version reported.

        A metric that this version does not know, or knows with another type, is left out.
        """
        try:
            return cls.model_validate(data, extra="ignore")
        except ValidationError as error:
            refused = {str(one["loc"][0]) for one in error.errors()}
            known = {name: value for name, value in data.items() if name not in refused}
            return cls.model_validate(known, extra="ignore")

    def numbers(self) -> dict[str, float]:
        """Return the known metrics that are plain numbers, by name."""
        values = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in values if isinstance(value, int | float)}


class StepPoint(StepMetrics):
    """Metrics of a step as a point of a run's history."""

    step: int
    """Training step."""
    at: float
    """Unix time, seconds, at which the step was reported."""


def declared(model: type[BaseModel]) -> Iterator[tuple[str, Metric, str]]:
    """Yield name, declaration and help text of each metric of a model."""
    for name, field in model.model_fields.items():
        for found in field.metadata:
            if isinstance(found, Metric):
                yield name, found, field.description or ""


def gauge_name(model: type[BaseModel], metric: str) -> str:
    """Return the full name of a metric's gauge.

    Raises:
        KeyError: the model declares no such metric, or the metric has no gauge.
    """
    return {name: f"{PROMETHEUS_PREFIX}{found.gauge}" for name, found, _ in declared(model) if found.gauge}[metric]
