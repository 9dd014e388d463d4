"""Grafana dashboards of the chart, one for runs and one for the platform, built with Grafana's own library.

``helm/generate.py`` writes them; a test fails when they are out of date.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef, VariableRefresh
from mor_core.step_metrics import PROMETHEUS_PREFIX, ClientFigures, SourceFigures, StepMetrics, gauge_name

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_HERE = 'namespace="$namespace"'
_RUN = f'{_HERE},run=~"$run"'
_RATE = "[$__rate_interval]"
_HEIGHT, _WIDTH = 8, 8
"""Grid units of a panel; a row is 24 wide."""


@dataclass(frozen=True)
class Panel:
    """Panel of lines over time."""

    title: str
    lines: dict[str, str]
    """PromQL by legend."""
    unit: str = "short"
    """Grafana's name of the unit: short, percentunit, s, ops."""
    about: str = ""
    stacked: bool = False


@dataclass(frozen=True)
class Row:
    """Titled row of panels."""

    title: str
    panels: Sequence[Panel] = field(default_factory=tuple)


def _run(metric: str) -> str:
    """Select a gauge of the chosen runs that is no step metric."""
    return f"{PROMETHEUS_PREFIX}{metric}{{{_RUN}}}"


def _step(metric: str) -> str:
    """Select the gauge of a step metric by the metric's own name."""
    return f"{gauge_name(StepMetrics, metric)}{{{_RUN}}}"


def _client(metric: str) -> str:
    """Select the gauge of a client's metric by the metric's own name."""
    return f"{gauge_name(ClientFigures, metric)}{{{_RUN}}}"


def _source(metric: str) -> str:
    """Select the gauge of a source's metric by the metric's own name."""
    return f"{gauge_name(SourceFigures, metric)}{{{_RUN}}}"


def _quantile(metric: str, q: float, *labels: str) -> str:
    by = ", ".join((*labels, "le"))
    return f"histogram_quantile({q:g}, sum by ({by}) (rate({metric}_bucket{{{_HERE}}}{_RATE})))"


def _rate(metric: str, *labels: str) -> str:
    return f"sum by ({', '.join(labels)}) (rate({metric}{{{_HERE}}}{_RATE}))"


def _most(metric: str, *labels: str) -> str:
    return f"max by ({', '.join(labels)}) ({metric}{{{_HERE}}})"


def _mean(metric: str, *labels: str) -> str:
    by = ", ".join(labels)
    return " / ".join(f"sum by ({by}) (rate({metric}_{part}{{{_HERE}}}{_RATE}))" for part in ("sum", "count"))


RUN = (
    Row(
        "Reward",
        (
            Panel(
                "Reward",
                {
                    "{{run}}": _step("reward_mean"),
                    "{{run}} evaluation": _run("evaluation_reward_mean_logits"),
                },
                about="Fused reward in calibrated logits, mean of the step; of greedy answers at evaluations.",
            ),
            Panel("Spread of the reward", {"{{run}}": _step("reward_std")}),
            Panel("Reward by client", {"{{client}}": _client("reward_mean")}),
            Panel("Weight by client", {"{{client}}": _client("weight")}, "percentunit", stacked=True),
            Panel("Entropy of the mixture", {"{{run}}": _step("mixture_entropy")}, about="nats; 0: one client."),
            Panel(
                "Groups whose rewards are alike",
                {"{{run}}": _step("zero_variance_ratio")},
                "percentunit",
                about="They carry no signal: see the runbook MorNothingToLearn.",
            ),
        ),
    ),
    Row(
        "Policy",
        (
            Panel("KL to the reference", {"{{run}}": _step("kl")}, about="nats a token."),
            Panel("Entropy of the policy", {"{{run}}": _step("entropy")}, about="nats a token."),
            Panel(
                "Clipped tokens",
                {"{{run}} low": _step("clip_low_ratio"), "{{run}} high": _step("clip_high_ratio")},
                "percentunit",
            ),
            Panel(
                "Raw importance ratio",
                {"{{run}} mean": _step("importance_ratio_mean"), "{{run}} max": _step("importance_ratio_max")},
                about="Trainer over engine; near 1 where both compute the same.",
            ),
            Panel(
                "Difference of engine and trainer",
                {"{{run}}": _step("engine_difference")},
                about="Nats a token, from the same weights; an alert beyond the run's max_engine_difference.",
            ),
            Panel("Effective sample size", {"{{run}}": _step("effective_sample_share")}, "percentunit"),
            Panel("Gradient norm", {"{{run}}": _step("grad_norm")}, about="Before clipping."),
            Panel("Learning rate", {"{{run}}": _step("lr")}),
            Panel("Response length", {"{{run}}": _step("response_length_mean")}, about="Tokens."),
            Panel("Truncated responses", {"{{run}}": _step("truncation_ratio")}, "percentunit"),
        ),
    ),
    Row(
        "Sources of prompts",
        (
            Panel(
                "Drawn groups by source",
                {"{{source}}": _source("drawn_ratio"), "{{source}} by weights": _source("expected_ratio")},
                "percentunit",
                about="Share of the run so far. Runs with one file have no sources.",
            ),
            Panel("Reward by source", {"{{source}}": _source("reward_mean")}),
            Panel("Epochs by source", {"{{source}}": _source("epochs")}, about="Passes over the rows of a source."),
        ),
    ),
    Row(
        "Pace",
        (
            Panel(
                "Seconds of a step",
                {"{{share}}": _step("seconds")},
                "s",
                stacked=True,
                about="Phases of the last step; waiting is for sampled and scored groups.",
            ),
            Panel("Tokens trained on", {"{{run}}": _step("tokens_per_second")}, "ops"),
            Panel(
                "Staleness",
                {"{{run}}": _step("staleness_max"), "{{run}} bound": _run("staleness_bound_updates")},
                about="Updates between sampling and training.",
            ),
            Panel("Step", {"{{run}}": _run("step")}),
            Panel(
                "Since the last step",
                {"{{run}}": f"time() - {_run('last_step_timestamp_seconds')}"},
                "s",
            ),
            Panel(
                "Groups, in all",
                {
                    "applied": _step("groups_applied"),
                    "skipped": _step("groups_skipped"),
                    "issued again": _step("groups_retried"),
                    "dropped": _step("groups_dropped"),
                    "came back twice": _step("groups_duplicate"),
                },
            ),
        ),
    ),
)

PLATFORM = (
    Row(
        "Clients",
        (
            Panel(
                "Time of a call",
                {
                    "{{client}} median": _quantile("mor_router_client_seconds", 0.5, "client"),
                    "{{client}} 95 %": _quantile("mor_router_client_seconds", 0.95, "client"),
                },
                "s",
            ),
            Panel(
                "Failures",
                {"{{client}} {{reason}}": _rate("mor_router_client_failures_total", "client", "reason")},
                "ops",
            ),
            Panel(
                "Circuit",
                {"{{client}}": _most("mor_router_circuit_state", "client")},
                about="0 closed, 1 half open, 2 open: not called.",
            ),
            Panel(
                "Out of the mixture",
                {
                    "{{client}} quarantined": _most("mor_router_quarantined", "client"),
                    "{{client}} distrusted": _most("mor_router_distrusted", "client"),
                    "{{client}} unreliable": _most("mor_router_unreliable", "client"),
                    "{{client}} another model": _most("mor_router_stale_calibration", "client"),
                },
            ),
            Panel("Calibration slope", {"{{client}}": _mean("mor_router_calibration_slope_logits", "client")}),
            Panel(
                "Evidence of drift",
                {
                    "{{client}} answers changed": _most("mor_router_drift_evidence", "client"),
                    "{{client}} disagrees": _most("mor_router_disagreement_evidence", "client"),
                    "{{client}} misleads audited groups": _most("mor_router_audit_evidence", "client"),
                },
                about="log10; see the runbook MorClientDrifted.",
            ),
            Panel(
                "Audits",
                {
                    "{{objective}} waiting": _most("mor_router_audits_waiting", "objective"),
                    "{{objective}} {{outcome}} per hour": "3600 * "
                    + _rate("mor_router_audits_total", "objective", "outcome"),
                },
                about="Live groups that are labelled to check the clients; see the runbook MorAuditsWaiting.",
            ),
            Panel(
                "Weight in the mixture",
                {"{{client}}": _mean("mor_router_mixture_weight_ratio", "client")},
                "percentunit",
            ),
            Panel(
                "Disagreement",
                {"clients": _mean("mor_router_disagreement_logits")},
                about="Weighted standard deviation over clients, logits.",
            ),
            Panel(
                "Bytes",
                {"{{client}} {{direction}}": _rate("mor_router_client_bytes_total", "client", "direction")},
                "Bps",
            ),
        ),
    ),
    Row(
        "Queue",
        (
            Panel("Unsettled entries", {"{{run}} {{stream}}": _most("mor_trainer_stream_entries", "run", "stream")}),
            Panel(
                "Age of the oldest entry",
                {"{{run}} {{stream}}": _most("mor_trainer_stream_oldest_seconds", "run", "stream")},
                "s",
            ),
            Panel(
                "Waiting for a stage",
                {
                    "rollout 95 %": _quantile("mor_rollout_queue_wait_seconds", 0.95),
                    "router 95 %": _quantile("mor_router_queue_wait_seconds", 0.95),
                    "{{run}} trainer mean": _most(gauge_name(StepMetrics, "queue_wait"), "run"),
                },
                "s",
            ),
            Panel("Groups through the router", {"{{outcome}}": _rate("mor_router_groups_total", "outcome")}, "ops"),
            Panel(
                "Dead letters",
                {
                    "rollout {{reason}}": _rate("mor_rollout_dead_letters_total", "reason"),
                    "router": f'sum (rate(mor_router_groups_total{{outcome="dead",{_HERE}}}{_RATE}))',
                },
                "ops",
            ),
            Panel("Alerts of runs", {"{{run}} {{name}}": f"sum by (run, name) (mor_trainer_alerts_total{{{_HERE}}})"}),
        ),
    ),
    Row(
        "Sampling",
        (
            Panel("Sampled tokens", {"{{purpose}}": _rate("mor_rollout_tokens_total", "purpose")}, "ops"),
            Panel("Groups in flight", {"{{instance}}": f"sum by (instance) (mor_rollout_groups_in_flight{{{_HERE}}})"}),
            Panel("Time of a group", {"95 %": _quantile("mor_rollout_generate_seconds", 0.95)}, "s"),
            Panel(
                "Time of a weight swap",
                {
                    "pull 95 %": _quantile("mor_rollout_weights_pull_seconds", 0.95),
                    "drain 95 %": _quantile("mor_rollout_swap_drain_seconds", 0.95),
                    "swap 95 %": _quantile("mor_rollout_swap_seconds", 0.95),
                    "publication 95 %": _quantile("mor_trainer_weight_publication_seconds", 0.95),
                },
                "s",
            ),
            Panel("Weight swaps", {"{{outcome}}": _rate("mor_rollout_swaps_total", "outcome")}, "ops"),
            Panel(
                "Weights version",
                {
                    "published, {{run}}": _most(gauge_name(StepMetrics, "weights_version"), "run"),
                    "{{instance}}": _most("mor_rollout_weights_version", "instance"),
                },
            ),
        ),
    ),
    Row(
        "Services",
        (
            Panel("Up", {"{{instance}}": f"min by (instance) (up{{{_HERE}}})"}),
            Panel("Router's own time", {"95 %": _quantile("mor_router_overhead_seconds", 0.95)}, "s"),
            Panel("Time to fit a gate", {"95 %": _quantile("mor_router_fit_seconds", 0.95)}, "s"),
        ),
    ),
)


def dashboards() -> dict[str, str]:
    """Build the dashboards, as JSON by file name."""
    per_run = dashboard.QueryVariable("run").query(f"label_values(mor_trainer_step{{{_HERE}}}, run)")
    variable = per_run.datasource(_SOURCE).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(True).include_all(True)
    run = _dashboard("MoR: runs", "mor-run", RUN).with_variable(variable)
    platform = _dashboard("MoR: platform", "mor-platform", PLATFORM)
    return {
        f"{name}.json": JSONEncoder(sort_keys=True, indent=1).encode(built.build()) + "\n"
        for name, built in (("run", run), ("platform", platform))
    }


def _dashboard(title: str, uid: str, rows: Sequence[Row]) -> dashboard.Dashboard:
    namespace = dashboard.QueryVariable("namespace").query("label_values(mor_rollout_weights_version, namespace)")
    built = (
        dashboard.Dashboard(title)
        .uid(uid)
        .tags(["mor"])
        .timezone("browser")
        .refresh("30s")
        .time("now-3h", "now")
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus"))
        .with_variable(namespace.datasource(_SOURCE).refresh(VariableRefresh.ON_TIME_RANGE_CHANGED))
    )
    numbers = itertools.count(1)
    for row in rows:
        built = built.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            built = built.with_panel(_panel(panel, next(numbers)))
    return built


def _panel(panel: Panel, number: int) -> timeseries.Panel:
    built = (
        timeseries.Panel()
        .id(number)
        .title(panel.title)
        .description(panel.about)
        .datasource(_SOURCE)
        .unit(panel.unit)
        .height(_HEIGHT)
        .span(_WIDTH)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
    )
    if panel.stacked:
        built = built.stacking(common.StackingConfig().mode(StackingMode.NORMAL)).fill_opacity(40)
    for ref, (legend, expression) in zip("ABCDEFGH", panel.lines.items(), strict=False):
        built = built.with_target(prometheus.Dataquery().expr(expression).legend_format(legend).ref_id(ref))
    return built
