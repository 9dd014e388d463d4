"""README's answer to whether the router beats averaging: MoR beside other uses of the same clients' scores."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from quality.tables import interval

from tables.results import read, table

Found = Mapping[str, Any]

ARMS = {
    "best single client": "best single client",
    "worst client": "lowest score of all clients",
    "uniform, raw": "mean of the raw scores",
    "stacking (logistic regression)": "stacking",
    "parameter-averaged reward model (FedAvg)": "reward models averaged in parameter space (FedAvg)",
    "MoR": "**MoR**",
    "oracle (best client per sub-skill)": "oracle: the truly best client for each sub-skill",
    "centralised reward model (pooled data)": "centralised: one reward model on everybody's data",
}
"""Arms that README shows, best-known alternatives first and what no server could have last, with their labels there."""
_MEAN, _STACKING, MOR = "uniform, raw", "stacking (logistic regression)", "MoR"
_AVAILABLE = tuple(ARMS)[:5]
"""Arms that a server could run instead of MoR, with the clients' scores or parameters."""
EXPERIMENT = "quality-quick"


def averaging() -> str:
    """Format MoR against other uses of the same scores as Markdown, with the cases in which it is not ahead."""
    ranked = read(EXPERIMENT)
    policies = read(f"{EXPERIMENT}-policies")
    grown = read(EXPERIMENT.replace("quality", "quality-grpo"))
    if ranked is None or policies is None or grown is None:
        return "Not measured yet: run `make bench-quality` and `make bench-grpo`.\n"
    ranking, optimal = ranked["ranking"], policies["policies"]["by anchors"]
    head = [
        "reward",
        "pairs ranked right, 64 anchors, %",
        "MoR ahead by, points",
        "256 anchors, %",
        "worst domain, 64 anchors, %",
        "best policy at KL 1, points over base",
        "trained by GRPO, gold accuracy, %",
    ]
    rows = [
        [
            label,
            f"{ranking['64'][arm]['accuracy']['mean']:.1f}",
            "" if arm == MOR else interval(ranking["64"][arm]["behind"]),
            f"{ranking['256'][arm]['accuracy']['mean']:.1f}",
            f"{ranking['64'][arm]['worst']:.1f}",
            f"{gain(optimal['64'], arm):+.1f}",
            trained(grown["arms"], arm),
        ]
        for arm, label in ARMS.items()
    ]
    lines = [*not_ahead(ranked, optimal, grown), *_method(ranked, policies, grown)]
    return table([head, ["---", *["--:"] * (len(head) - 1)], *rows]) + "\n" + "".join(f"- {line}\n" for line in lines)


def not_ahead(ranked: Found, optimal: Found, grown: Found) -> list[str]:
    """Write sentences for the cases in which MoR loses or its lead is within the interval."""
    lines = []
    for anchors, part in optimal.items():
        leads = {arm: part["at KL 1"][arm]["MoR ahead in the worst domain"] for arm in _AVAILABLE}
        behind = [f"{ARMS[arm]} {interval(lead)}" for arm, lead in leads.items() if lead["mean"] < 0]
        if behind:
            lines.append(
                f"**MoR does not win the worst domain with {anchors} anchors.** Points by which its best policy at KL "
                f"1 is ahead there: {', '.join(behind)}."
            )
    lead = optimal["64"]["at KL 1"]["worst client"]["MoR ahead"]
    if lead["low"] < 0:
        lines.append(f"In the mean, the lead over the {ARMS['worst client']} is not settled: {interval(lead)} points.")
    counts, mixes = ranked["anchor_counts"], ranked["other_mixes"]
    few = [fmean(counts[arm]["16"]) for arm in (MOR, _MEAN)]
    lines.append(
        f"With 16 anchors MoR ranks {few[0]:.1f} % of the pairs right and the {ARMS[_MEAN]} {few[1]:.1f} %; on a "
        f"domain without any anchor {mixes[MOR]['unseen']:.1f} % and {mixes[_MEAN]['unseen']:.1f} %."
    )
    rival = grown["arms"][_STACKING]["MoR ahead in the worst domain"]
    return [
        *lines,
        f"GRPO does not settle the worst domain: MoR is {interval(rival)} points ahead of stacking there.",
        *_again(ranked),
        _federated(),
    ]


def _again(ranked: Found) -> list[str]:
    """Compare the run with a further one, in which all models were trained anew."""
    result = read(f"{EXPERIMENT}-again")
    if result is None:
        return []
    first, second = (one["ranking"]["64"] for one in (ranked, result))
    found = {arm: [run[arm]["accuracy"]["mean"] for run in (first, second)] for arm in ARMS}
    levels = ", ".join(f"{ARMS[arm].strip('*')} {found[arm][1]:.1f}" for arm in reversed(ARMS))
    leads = [interval(second[arm]["behind"]) for arm in (_STACKING, _MEAN)]
    return [
        "**Levels differ between runs by more than the intervals of one run**, here by up to "
        f"{max(abs(one - other) for one, other in found.values()):.1f} points. A second run from nothing, with all "
        f"models trained anew: {levels} %. There MoR is {leads[0]} points ahead of stacking and {leads[1]} ahead of "
        f"the {ARMS[_MEAN]}."
    ]


def _federated() -> str:
    """Compare policies that clients train together with MoR's, at equal compute."""
    result = read(EXPERIMENT.replace("quality", "quality-federated"))
    if result is None:
        return (
            "**Federated training of the policy itself (FedAvg, FedProx and others): none measured yet.** The row "
            "FedAvg averages reward models of one architecture."
        )
    levels = {title: fmean(row["gold"].values()) for title, row in result["arms"].items()}
    ordered = sorted(levels, key=levels.__getitem__, reverse=True)
    better = [title for title in ordered if result["arms"][title]["MoR ahead"]["mean"]["high"] < 0]
    verdict = f"**MoR is behind {', '.join(better)}.** " if better else ""
    return (
        f"{verdict}Policies that clients train federatedly, at equal compute and learning rates chosen on other "
        f"questions, {len(result['seeds'])} run(s) of each, gold accuracy in %: "
        f"{', '.join(f'{title} {levels[title]:.1f}' for title in ordered)}.{_following(result)}"
    )


def _following(result: Found) -> str:
    """Tell what labels of the policy's own samples are worth, at equal labels."""
    row = result["arms"].get("MoR, half of its anchors from its own samples")
    if row is None:
        return ""
    lead = row["MoR ahead"]["mean"]
    gained = {"mean": -lead["mean"], "low": -lead["high"], "high": -lead["low"]}
    return (
        f" Half of the anchors from the policy's own samples, at equal labels, change MoR by {interval(gained)} points."
    )


def few_calls() -> list[str]:
    """Tell what asking few clients costs, and what a student of the mixture gives back."""
    result = read(EXPERIMENT.replace("quality", "quality-student"))
    if result is None:
        return []
    members = result["members"]
    alone, helped = (
        {calls: levels["held-out pairs"] for calls, levels in members[name].items()}
        for name in ("clients alone", "with the student")
    )
    [*_, every] = alone
    return [
        f"Asking few clients costs accuracy: of {every}, two {alone['2']:.1f} %, four {alone['4']:.1f} %, all "
        f"{alone[every]:.1f} %. With a student of the mixture, a reward model of the server, two {helped['2']:.1f} %, "
        f"four {helped['4']:.1f} %, all {helped[every]:.1f} %, none {helped['0']:.1f} %: it is not part of MoR."
    ]


def _method(ranked: Found, policies: Found, grown: Found) -> list[str]:
    return [
        f"{len(ranked['clients'])} clients and {ranked['pairs']:,} held-out pairs; policies on "
        f"{policies['policies']['prompts']} prompts; GRPO: {len(grown['seeds'])} runs of {grown['steps']} steps, "
        f"base model {trained(grown['arms'], 'base model')} %, blank where it was not run. Brackets: interval, "
        "for GRPO lowest to highest run.",
        f"`make bench-quality` at commits {ranked['commit']} and {policies['commit']}, `make bench-grpo` at commit "
        f"{grown['commit']}; [all arms and methods](docs/experiment.md).",
    ]


def gain(part: Found, arm: str) -> float:
    """Format the points of gold accuracy by which the optimal policy of an arm at KL 1 beats the base policy."""
    curve = part["curves"][arm]
    return float(100 * dict(zip(curve["kl"], curve["correct"], strict=True))[1.0])


def trained(arms: Found, arm: str) -> str:
    """Format the gold accuracy of the policies trained under an arm, mean over runs; empty where there are none."""
    if arm not in arms:
        return ""
    runs = [fmean(levels) for levels in zip(*arms[arm]["runs"].values(), strict=True)]
    return f"{fmean(runs):.1f}" + (f" ({min(runs):.1f} to {max(runs):.1f})" if len(runs) > 1 else "")
