"""Tables on clients that misbehave in some situations only, and on the recognition of honeypots."""

from __future__ import annotations

from typing import Any

from tables.results import measured_on, read, table

_LIMITED = ", limited"


def situational() -> str:
    """Format the cost of attacks until audits end them as Markdown."""
    result = read("adversaries")
    if result is None:
        return "Not measured yet; run `make demo` and `python bench/adversaries.py`.\n"
    rows = [
        [
            "attacker",
            "audits, %",
            "limit on suspects",
            "points lost in 100 groups",
            "in 200 groups",
            "in 500 groups",
            "in groups 201-500",
            "weight at 500, %",
            "caught, of runs",
            "groups to distrust, median (most)",
            "audits made",
        ],
        ["---", "--:", "---", *["--:"] * 8],
    ]
    for attacker, cases in result["attacks"].items():
        for case, found in cases.items():
            until = found["groups_to_distrust"]
            rows.append(
                [
                    attacker,
                    f"{100 * float(case.removesuffix(_LIMITED)):g}",
                    "yes" if case.endswith(_LIMITED) else "no",
                    *(_interval(found[name]) for name in ("lost_100", "lost_200", "lost_500", "lost_after_200")),
                    f"{100 * found['weight']['mean']:.1f}",
                    f"{found['caught']} of {found['runs']}",
                    "" if until is None else f"{until['median']:.0f} ({until['most']})",
                    f"{found['audits']['mean']:.0f}",
                ]
            )
    false = sum(found["false_distrusts"] for cases in result["attacks"].values() for found in cases.values())
    clean = next(iter(result["attacks"].values()))
    text = (
        f"Points of ranking accuracy lost against the same groups without the attacker, whose accuracy is "
        f"{next(iter(clean.values()))['accuracy_without']['mean']:.1f} %; means over {result['runs']} runs with 95 % "
        f"intervals. Honest clients distrusted in all runs together: {false}. "
        f"{_measured(result, 'attacks')}"
    )
    return f"{table(rows)}\n{text}\n"


def recognition() -> str:
    """Format how well a classifier tells honeypots from live calls as Markdown."""
    result = read("adversaries")
    if result is None or "recognition" not in result:
        return "Not measured yet; run `make demo` and `python bench/adversaries.py`.\n"
    kinds = list(next(iter(result["recognition"].values()))["alone"])
    rows = [
        ["anchors", "groups", "honeypots", "area under the ROC curve (95 %)", *(f"{kind} alone" for kind in kinds)],
        ["---", *["--:"] * (3 + len(kinds))],
    ]
    for anchors, found in result["recognition"].items():
        low, high = found["interval_95"]
        area = f"{found['auc']:.2f} ({low:.2f}-{high:.2f})"
        alone = [f"{found['alone'][kind]:.2f}" for kind in kinds]
        rows.append([anchors, str(found["groups"]), str(found["honeypots"]), area, *alone])
    return f"{table(rows)}\n0.5: honeypots cannot be told from live groups. {_measured(result, 'recognition')}\n"


def _measured(result: dict[str, Any], part: str) -> str:
    """Describe when and where a part was measured; the parts may be of different commits."""
    return measured_on({**result, **result["stamps"][part]}, f"python bench/adversaries.py {part}")


def _interval(found: dict[str, Any]) -> str:
    return f"{found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"
