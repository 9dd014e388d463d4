"""Results of the experiment as Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from quality.gold import conclusion

Found = Mapping[str, Any]

_LABELS = (
    (r"^no reach: the fit counts beyond its anchors too$", "no support: the fit counts everywhere"),
    (r"^what the gate fitted (\w+) costs, asked (\w+)", r"cost of the gate fitted \1, evaluated on \2"),
    (r", asked (\w+)", r", evaluated on \1"),
    (r"^says the opposite of what it knows$", "inverts its scores"),
    (r"^flips the sign of what it knows at random$", "inverts its scores at random"),
    (r"^always says the same$", "constant"),
)
"""Patterns of former names, which stored records still have, and the present names."""


def markdown(found: Found, level: int = 2) -> str:
    """Format all results in ``found``, under headings of ``level``."""
    parts = [
        (title.format(count), text(answer))
        for subject, title, text in _PARTS
        if subject in found
        for count, answer in (found[subject].items() if "{}" in title else [("", found[subject])])
    ]
    return "\n\n".join(f"{'#' * level} {title}\n\n{text}" for title, text in parts) + "\n"


def label(name: str) -> str:
    """Return the present form of a name in a record."""
    for pattern, words in _LABELS:
        name = re.sub(pattern, words, name)
    return name


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def clients(found: Found) -> str:
    skills = list(next(iter(found.values())))
    return table(
        ["client", *skills], [[name, *(f"{row[skill]:.0f}" for skill in skills)] for name, row in found.items()]
    )


def standings(found: Found) -> str:
    domains = list(next(iter(found.values()))["domains"])
    head = ["arm", "accuracy", *domains, "worst domain", "MoR is ahead by", "in the worst domain by"]
    rows = [
        [
            label(name),
            f"{row['accuracy']['mean']:.1f}",
            *(f"{row['domains'][domain]:.1f}" for domain in domains),
            f"{row['worst']:.1f}",
            interval(row["behind"]),
            interval(row["worst_behind"]),
        ]
        for name, row in sorted(found.items(), key=lambda item: item[1]["accuracy"]["mean"])
    ]
    return table(head, rows)


def counts(found: Found) -> str:
    columns = list(next(iter(found.values())))
    return table(
        ["arm", *columns],
        [[name, *(_range(row[column]) for column in columns)] for name, row in found.items()],
    )


def labels(found: Found) -> str:
    counts = list(next(iter(found.values())))
    head = ["labels of anchors", *(f"{count}: held-out pairs / anchors kept aside" for count in counts)]
    rows = [
        [way, *(" / ".join(_range(levels) for levels in row[count].values()) for count in counts)]
        for way, row in found.items()
    ]
    return table(head, rows)


def variants(found: Found) -> str:
    counts = list(next(iter(found.values())))
    head = ["variant", *(f"{count} anchors: held-out pairs / worst domain / anchors aside" for count in counts)]
    columns = ("held-out pairs", "worst domain", "anchors aside")
    rows = [
        [label(name), *(" / ".join(f"{row[count][column]:.1f}" for column in columns) for count in counts)]
        for name, row in found.items()
    ]
    return table(head, rows)


def mixes(found: Found) -> str:
    head = ["arm", "on the two domains with a fifth of the anchors", "on a domain without anchors"]
    return table(head, [[label(name), f"{row['rare']:.1f}", f"{row['unseen']:.1f}"] for name, row in found.items()])


def adversarial(found: Found) -> str:
    head = [
        "scenario",
        "adversary joins: loss of MoR",
        "adversary's weight, %",
        "an expert turns adversarial: loss of MoR against the same population without it",
        "and against the honest expert",
    ]
    return table(
        head,
        [
            [
                name,
                interval(row["joined"]),
                f"{row['weight']:.1f}",
                interval(row["turned against absent"]),
                interval(row["turned"]),
            ]
            for name, row in found.items()
        ],
    )


def onboarding(found: Found) -> str:
    head = ["gate", "all pairs", "the sub-skill that the newcomer is best at"]
    names = {"without": "without the newcomer", "joined": "newcomer added, the others unchanged", "refit": "refit"}
    return table(head, [[names[way], f"{row['all']:.1f}", f"{row['own']:.1f}"] for way, row in found.items()])


def scaling(found: Found) -> str:
    head = ["clients", "calls per group", "accuracy, %", "accuracy if all are called, %", "gate, ms per group"]
    return table(
        head,
        [
            [count, str(row["calls"]), f"{row['called']:.1f}", f"{row['all']:.1f}", f"{row['gate ms']:.3f}"]
            for count, row in found.items()
        ],
    )


def wire(found: Found) -> str:
    return table(["", "bytes"], [[name, f"{value:,.0f}"] for name, value in found.items()])


def objectives(found: Found) -> str:
    rows = [
        [label(name), *(interval(value) if isinstance(value, Mapping) else f"{value:.1f}" for value in values)]
        for name, values in ((name, [part[name] for part in found.values()]) for name in next(iter(found.values())))
    ]
    return table(["accuracy, or points", *(f"{count} anchors" for count in found)], rows)


def policies(found: Found) -> str:
    base, tuned = found["base"], found["supervised on anchors"]
    parts = [
        f"Fitted on {count} anchors:\n\n{_policies(part)}\n\n{conclusion(part['at KL 1'])}"
        for count, part in found["by anchors"].items()
    ]
    of_all = (
        f"The base policy is correct in {100 * base['correct']:.1f} % of its samples, {found['responses']} to each "
        f"of {found['prompts']} prompts. Intervals are over prompts and draws of anchors. Tuning on the preferred "
        f"answers of 64 anchors alone gains {100 * tuned['gain']:+.1f} points at KL {tuned['kl']:.2f}."
    )
    return "\n\n".join([*parts, of_all])


def _policies(part: Found) -> str:
    first = next(iter(part["curves"].values()))
    head = [
        "arm",
        *(f"correct at KL {kl:g}, points" for kl in first["kl"]),
        "taste at KL 1",
        "worst domain at KL 1, % correct",
        "MoR ahead at KL 1, points",
        "in the worst domain by",
    ]
    rows = []
    for name, curve in part["curves"].items():
        correct = dict(zip(curve["kl"], curve["correct"], strict=True))
        taste = dict(zip(curve["kl"], curve["taste"], strict=True))
        shown = [f"{100 * correct[kl]:+.1f}" if kl in correct else "" for kl in first["kl"]]
        row = part["at KL 1"].get(name)
        rows.append([name, *shown, f"{taste[1.0]:+.2f}" if 1.0 in taste else "", *(_lead(row) if row else [""] * 3)])
    return table(head, rows)


def trained(found: Found) -> str:
    """Format the results of policies that GRPO trained with an arm's reward."""
    arms = found["arms"]
    domains = list(next(iter(arms.values()))["domains"])
    head = ["trained under", "accuracy, %", *domains, "worst domain", "MoR ahead by", "in the worst domain by"]
    rows = [
        [
            name,
            _range([fmean(levels) for levels in zip(*row["runs"].values(), strict=True)]),
            *(_range(row["runs"][domain]) for domain in domains),
            *_lead(row),
        ]
        for name, row in arms.items()
    ]
    runs = len(found["seeds"])
    return (
        f"{table(head, rows)}\n\n{conclusion(arms)} {runs} {'run' if runs == 1 else 'runs'} of {found['steps']} steps "
        f"per arm (lowest to highest in brackets), each with its own anchors, order of prompts and samples; "
        f"{found['questions']:,} questions on held-out material. The intervals are over questions"
        f"{' of one run, without the variation between runs.' if runs == 1 else ' and runs; with few runs too narrow.'}"
    )


def _lead(row: Found) -> list[str]:
    """Format the worst domain, and MoR's lead in the mean and there."""
    return [f"{row['worst']:.1f}", interval(row["MoR ahead"]), interval(row["MoR ahead in the worst domain"])]


def interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"


def _range(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")


_PARTS: tuple[tuple[str, str, Callable[[Found], str]], ...] = (
    ("clients", "Clients: pairs ranked as labelled, %", clients),
    ("ranking", "Arms on held-out pairs, fitted on {} anchors, %", standings),
    ("without_parts", "MoR without one of its parts, %", standings),
    ("variants", "Variants of MoR that are not part of it, %", variants),
    ("anchor_counts", "Accuracy by number of anchors, % (lowest to highest draw)", counts),
    ("labels", "Accuracy of MoR by number of labels, % (lowest to highest draw)", labels),
    ("other_mixes", "Anchors of another mix of domains, %", mixes),
    ("onboarding", "Onboarding of a client, %", onboarding),
    (
        "adversarial",
        "Adversarial clients, replayed on the scores: points of accuracy after one fit on 64 anchors",
        adversarial,
    ),
    ("objectives", "Two objectives that conflict, %", objectives),
    ("scaling", "Many clients, of which only those with the most weight are called (simulated)", scaling),
    ("wire", "Bytes over the wire, one client", wire),
    ("policies", "Optimal policy of each arm at equal KL: gold above base", policies),
)
"""Subject, heading, and function that formats it; a heading with ``{}`` is repeated per number of anchors."""
