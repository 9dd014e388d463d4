"""Tables on the mixture of clients: ranking accuracy, and the effect of useless, broken and hostile clients."""

from __future__ import annotations

from typing import Any

from quality import student
from quality.federated import report
from quality.tables import label, markdown, trained

from tables.results import RESULTS, read, table

_KEPT_S = 10.0
"""Seconds below which a stage counts as skipped, because its files existed."""


def experiment() -> str:
    """Format the results of ``bench/quality``, of the largest size that was run, as Markdown."""
    for name in ("quality-full", "quality-quick"):
        result = read(name)
        if result is not None:
            made = (
                f"Measured on {result['pairs']:,} held-out pairs at commit {result['commit']}, {result['measured']}"
                f"{_spent(result['seconds'])}; `bench/results/{name}.json` has all numbers.\n"
            )
            more = read(f"{name}-policies")
            if more is not None:
                result["policies"] = more["policies"]
                made += f"The policies are of `{name}-policies.json`, commit {more['commit']}, {more['measured']}.\n"
            text = f"{made}\n{markdown(result, level=4)}\n{_closed_loop(name)}"
            return text + _student(name) + _federated(name) + _second_population(name)
    return "Not measured yet; run `make bench-quality`.\n"


def _spent(seconds: dict[str, float]) -> str:
    """Format the duration of the stages, if no stage was skipped."""
    stages = ("material", "training", "scoring")
    if not all(seconds[stage] > _KEPT_S for stage in stages):
        return ""
    rest = sum(spent for stage, spent in seconds.items() if stage not in stages)
    listed = ", ".join(f"{stage} {seconds[stage] / 60:.1f}" for stage in stages)
    return f", in {sum(seconds.values()) / 60:.0f} minutes ({listed}, comparing {rest / 60:.1f})"


def _closed_loop(experiment: str) -> str:
    name = experiment.replace("quality", "quality-grpo")
    result = read(name)
    text = "Not measured yet; run `make bench-grpo`.\n" if result is None else f"{trained(result)}\n"
    return f"#### Policies trained by GRPO with the rewards of the best arms\n\n{text}"


def _federated(experiment: str) -> str:
    """Format the comparisons with federated policies that were measured on test questions."""
    parts = []
    for file in sorted(RESULTS.glob(f"{experiment.replace('quality', 'quality-federated')}*.json")):
        result = None if "-dev" in file.stem else read(file.stem)
        if result is not None:
            without = f", nobody trains on {result['without']}" if result["without"] else ""
            parts.append(f"\n#### Policies trained federatedly{without}\n\n{report.markdown(result)}\n")
    return "".join(parts)


def _student(experiment: str, level: int = 4) -> str:
    """Format the accuracy with a student, and with few clients asked, if it was measured."""
    population, _, size = experiment.rpartition("-")
    result = read(f"{population}-student-{size}")
    if result is None:
        return ""
    made = f"commit {result['commit']}, {result['measured']}"
    return f"\n{'#' * level} A student of the mixture, and few clients asked ({made})\n\n{student.markdown(result)}\n"


def _second_population(experiment: str) -> str:
    """Format the arms' ranking on the second population, if it was measured."""
    name = experiment.replace("quality", "quality-classroom")
    result = read(name)
    if result is None:
        return ""
    made = f"`bench/results/{name}.json`, commit {result['commit']}, {result['measured']}"
    shown = ("ranking", "variants", "labels")
    text = markdown({subject: result[subject] for subject in shown if subject in result}, level=5)
    ranking = f"\n#### Second population: {result['pairs']:,} held-out pairs ({made})\n\n{text}"
    return ranking + _student(name, level=5)


def quarantine() -> str:
    """Format the error rates of the test of usefulness as Markdown."""
    result = read("quarantine")
    if result is None:
        return "Not measured yet; run `python bench/quarantine.py`.\n"
    arrangements: dict[str, Any] = result["failed"]
    sizes = list(next(iter(next(iter(arrangements.values())).values())))
    rows = [
        [
            "five regions",
            f"client; where it is right, in {100 * result['skill']:.0f} % of pairs",
            *(f"{size} anchors" for size in sizes),
        ],
        ["---", "---", *["--:"] * len(sizes)],
        *(
            [arrangement, label(client), *(f"{100 * share:.0f} %" for share in shares.values())]
            for arrangement, clients in arrangements.items()
            for client, shares in clients.items()
        ),
    ]
    made = f"`python bench/quarantine.py`, {result['measured']}, commit {result['commit']}."
    return f"{table(rows)}\nShare of {result['trials']} trials in which the client fails (p > 0.1). {made}\n"


def hostile() -> str:
    """Format the effect of hostile and broken clients on the served router as Markdown."""
    result = read("hostile")
    if result is None:
        return "Not measured yet; run `python bench/hostile.py`.\n"
    scenarios: dict[str, Any] = result["scenarios"]
    clean = scenarios["clean"]["ranking_accuracy"]
    rows = [
        [
            "scenario",
            "accuracy, %",
            "against clean, points",
            "just after the first fit, %",
            "weight, %",
            "state",
            "groups lost",
            "ms per call, median (95 %)",
        ],
        ["---", *["--:"] * 4, "---", "--:", "--:"],
    ]
    for name, found in scenarios.items():
        weight, spent = found["largest_hostile_weight"], found["seconds_per_call"]
        rows.append(
            [
                name,
                f"{100 * found['ranking_accuracy']:.1f}",
                f"{100 * (found['ranking_accuracy'] - clean):+.1f}",
                f"{100 * found['accuracy_by_round'][0]:.1f}",
                "" if weight is None else f"{100 * weight:.1f}",
                ", ".join(found["states"].values()),
                f"{found['lost_groups']}",
                f"{1e3 * spent['p50']:.0f} ({1e3 * spent['p95']:.0f})",
            ]
        )
    plan = result["plan"]
    text = (
        f"Accuracy: pairs within {plan['held_out']} held-out groups of 8 that the reward ranks as the truth does, "
        f"after {plan['refits']} refits with {plan['anchors']} fresh anchors each; weight: the largest of the "
        f"scenario's clients there. `python bench/hostile.py`, {result['measured']}, commit {result['commit']}."
    )
    return f"{table(rows)}\n{text}\n"
