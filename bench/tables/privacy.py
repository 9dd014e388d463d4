"""Tables of the privacy pages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tables.results import RESULTS, measured_on, read, table

NO_PRIVACY = "none"
"""Name of the arm without differential privacy; the others are named by their ε."""
_PLOT = "privacy.svg"
_CLIENTS = frozenset({"chart", "detail", "medical"})
"""Clients of the demonstration."""


def hidden_scores() -> str:
    """Format what sums of weighted scores hide of one client as Markdown."""
    result = read("hidden-scores")
    if result is None:
        return "Not measured yet; run `python bench/hidden_scores.py`.\n"
    rows = [
        ["shares of the sum", "AUC on single scores", "AUC on sums", "AUC on sums, with copies"],
        ["---", "--:", "--:", "--:"],
        *(
            [name, f"{result['single']:.2f}", f"{found['auc']:.2f}", f"{found['auc_with_copies']:.2f}"]
            for name, found in result["sums"].items()
        ),
    ]
    worst = max(found["error_of_two_sums"] for found in result["sums"].values())
    return (
        f"{table(rows)}\nCopies rank as their models with correlation {result['copy']:g}. Two sums of a group give a "
        f"client's scores to {worst:.0e} logits. {measured_on(result, 'python bench/hidden_scores.py')}\n"
    )


def in_order(arms: Iterable[str]) -> list[str]:
    """Return arms by ε, the one without differential privacy last."""
    return sorted(arms, key=lambda name: math.inf if name == NO_PRIVACY else float(name))


def private_models() -> str:
    """Format accuracy and attacks of the demonstration's models, by ε, as Markdown, with the figure if it is drawn."""
    part = _part("membership")
    if part is None:
        return _not_measured("membership")
    rows = [
        ["client", "ε", "held-out accuracy", "attack per picture: AUC", "true positives at 1 % false ones"],
        ["---", "--:", "--:", "--:", "--:"],
    ]
    found = [(client, name, arms[name]) for client, arms in part["clients"].items() for name in in_order(arms)]
    for client, name, arm in found:
        rows.append([client, name, f"{arm['held_out']['accuracy']:.3f}", *_attack(arm["best"])])
    shadows = sorted({arm["shadows"] for *_, arm in found})
    figure = f"\n![ε, held-out accuracy and attacks](../bench/results/{_PLOT})\n" if (RESULTS / _PLOT).is_file() else ""
    missing = ", ".join(sorted(_CLIENTS - part["clients"].keys()))
    said = f"Best of the audit's attacks, with {' or '.join(map(str, shadows))} shadow models, and its 95 % interval. "
    said += "Accuracy: of all held-out pairs, without the noise that the card of a private model has."
    said += f" Not measured yet: {missing}." if missing else ""
    said += _cost(part["clients"])
    return f"{table(rows)}{figure}\n{said} {_measured('membership', [arm for *_, arm in found])}\n"


def _cost(clients: dict[str, Any]) -> str:
    """Say what ε costs each client and the mixture, and what is left of the attacks."""
    said = []
    for name in in_order({name for arms in clients.values() for name in arms} - {NO_PRIVACY}):
        both = {client: arms for client, arms in clients.items() if {name, NO_PRIVACY} <= arms.keys()}
        if not both:
            continue
        upper = max(arms[name]["best"]["picture"]["auc_interval"][1] for arms in both.values())
        gains = [
            f"{100 * (arms[name]['held_out']['accuracy'] - arms[NO_PRIVACY]['held_out']['accuracy']):+.1f} ({client})"
            for client, arms in both.items()
        ]
        said.append(
            f" At ε = {name} no interval ends above {upper:.2f}; held-out accuracy changes by {', '.join(gains)} "
            "points."
        )
    answers = _part("answers")
    private = [form for form in answers["forms"] if "ε" in form["answers"]] if answers else []
    for form in private:
        low, high = form["lost_interval"]
        said.append(f" The mixture of all clients loses {form['lost_points']:.1f} ({low:.1f} to {high:.1f}) points.")
    return "".join(said)


def private_accuracy() -> str:
    """Format the accuracy of a linear part over ε, on public starts, as Markdown."""
    part = _part("accuracy")
    if part is None:
        return _not_measured("accuracy")
    clients = part["clients"]
    epsilons = sorted((name for name in next(iter(clients.values())) if name[0].isdigit()), key=float, reverse=True)
    rows = [
        ["client", "pictures", "start alone", *(f"ε = {name}" for name in epsilons), "AUC per picture of the start"],
        ["---", "--:", "--:", *("--:" for _ in epsilons), "--:"],
    ]
    for client, found in clients.items():
        private = [f"{found[name]['mean']:.3f} ± {found[name]['deviation']:.3f}" for name in epsilons]
        rows.append([client, str(found["units"]), f"{found['start']:.3f}", *private, f"{found['start_auc']:.2f}"])
    said = (
        f"Mean and deviation of {part['draws']} draws of the noise. The start has seen none of the client's data: an "
        "AUC of its margins beside 0.5 is chance in what was held out, and is in all attacks on this client."
    )
    return f"{table(rows)}\n{said} {_measured('accuracy', [part])}\n"


def copies() -> str:
    """Format the fidelity of copies of reward models as Markdown."""
    part = _part("copying")
    if part is None:
        return _not_measured("copying")
    rows = [
        ["client", "groups", "answers", "ranks pairs alike", "Spearman", "copy's accuracy", "model's own"],
        ["---", "--:", "---", "--:", "--:", "--:", "--:"],
    ]
    for client, found in part["clients"].items():
        for copy in (*found["curve"], *found["limits"]):
            rows.append(
                [
                    client,
                    f"{copy['groups']:,}",
                    copy["answers"],
                    f"{100 * copy['agreement']:.1f} %",
                    f"{copy['spearman']:.2f}",
                    f"{copy['accuracy']:.3f}",
                    f"{found['teacher_accuracy']:.3f}",
                ]
            )
    said = "Groups of 8 responses; noise in logits, bits over ±8 logits. Judged about pictures that were not asked."
    return f"{table(rows)}\n{said} {_measured('copying', list(part['clients'].values()))}\n"


def limited_answers() -> str:
    """Format the cost of limited answers for the mixture as Markdown."""
    part = _part("answers")
    if part is None:
        return _not_measured("answers")
    rows = [
        ["answers", "fused accuracy", "lost, points", *(f"{client} alone" for client in part["clients"])],
        ["---", "--:", "--:", *("--:" for _ in part["clients"])],
    ]
    for form in part["forms"]:
        low, high = form["lost_interval"]
        lost = f"{form['lost_points']:.1f} ({low:.1f} to {high:.1f})"
        rows.append([form["answers"], f"{form['accuracy']:.1f} %", lost, *(f"{own:.1f} %" for own in form["alone"])])
    said = (
        f"{part['pairs']:,} held-out pairs of all clients' subjects, {part['anchors']} of them anchors. Every client "
        "answers in the same form, anchors included; noise in logits, bits over ±8 logits."
    )
    return f"{table(rows)}\n{said} {_measured('answers', [part])}\n"


def _part(name: str) -> dict[str, Any] | None:
    return (read("privacy") or {}).get(name)


def _not_measured(part: str) -> str:
    return f"Not measured yet; run `python bench/privacy.py --parts {part}`.\n"


def _measured(part: str, figures: Sequence[dict[str, Any]]) -> str:
    result = read("privacy") or {}
    commits = ", ".join(sorted({str(found["commit"]) for found in figures}))
    quick = " --quick" if any(found.get("size") == "quick" or found.get("shadows") == 8 for found in figures) else ""
    return measured_on({**result, "commit": commits}, f"python bench/privacy.py --parts {part}{quick}")


def _attack(best: dict[str, Any]) -> list[str]:
    attack = best.get("picture")
    if attack is None:
        return ["", ""]
    low, high = attack["auc_interval"]
    return [f"{attack['auc']:.2f} ({low:.2f} to {high:.2f})", f"{100 * attack['true_positives']:.0f} %"]
