"""Grader of responses: ``python -m three_domains.grade --gold G.jsonl --responses R.jsonl --out J.json``.

It runs in its own process, the only reader of the gold files. A row of the responses file is ``{"id",
"responses": [text, …]}``; accuracy uses the first response (the greedy one), best-of-k uses all.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from mor_core import atomic
from mor_core.intervals import wilson

from three_domains.domains import ANSWERS

EXAMPLES = 6
"""Graded responses that the report shows per domain."""


class GradeError(ValueError):
    """The responses do not match the gold file; the message names the line or id and the cure."""


def grade(gold: list[dict[str, Any]], responses: dict[str, list[str]]) -> dict[str, Any]:
    """Return accuracy, interval, best-of-k and examples per domain, and ``mean_accuracy`` over the domains.

    ``gold``: rows of a gold file. ``responses``: for each row's id, one or more texts, the one for accuracy first.

    Raises:
        GradeError: a gold row has no response, or a response belongs to no gold row.
    """
    known = {row["id"] for row in gold}
    missing, extra = [row["id"] for row in gold if not responses.get(row["id"])], sorted(set(responses) - known)
    if missing or extra:
        which = (
            f"{len(missing)} questions have no response (first: {missing[0]})" if missing else f"unknown id {extra[0]}"
        )
        raise GradeError(f"{which}: generate the responses from this same gold file's prompts, one row per id")
    domains = {name: _grade_domain([row for row in gold if row["domain"] == name], responses) for name in ANSWERS}
    graded = {name: report for name, report in domains.items() if report["n"]}
    mean = sum(report["accuracy"] for report in graded.values()) / len(graded) if graded else None
    return {"domains": graded, "mean_accuracy": mean}


def _grade_domain(rows: list[dict[str, Any]], responses: dict[str, list[str]]) -> dict[str, Any]:
    if not rows:
        return {"n": 0}
    checks = {row["id"]: _checks(row, responses[row["id"]]) for row in rows}
    right = sum(check[0] for check in checks.values())
    tasks: dict[str, list[bool]] = {}
    for row in rows:
        tasks.setdefault(row["gold"]["task"], []).append(checks[row["id"]][0])
    return {
        "n": len(rows),
        "accuracy": right / len(rows),
        "interval_95": wilson(right, len(rows)),
        "k": min(len(check) for check in checks.values()),
        "mean_of_k": sum(sum(check) / len(check) for check in checks.values()) / len(rows),
        "best_of_k": sum(any(check) for check in checks.values()) / len(rows),
        "tasks": {task: {"n": len(hits), "accuracy": sum(hits) / len(hits)} for task, hits in sorted(tasks.items())},
        "examples": [
            {
                "id": row["id"],
                "question": row["prompt"][0]["content"][-1]["text"],
                "gold": row["gold"],
                "response": responses[row["id"]][0],
                "correct": checks[row["id"]][0],
            }
            for row in rows[:EXAMPLES]
        ],
    }


def _checks(row: dict[str, Any], texts: list[str]) -> list[bool]:
    answers = ANSWERS[row["domain"]]
    return [answers.correct(row["gold"], text) for text in texts]


def read_responses(file: Path) -> dict[str, list[str]]:
    """Read a responses file.

    Raises:
        GradeError: a line is not a JSON object with ``id`` and a list of texts ``responses``, or an id is repeated.
    """
    found: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            name, texts = row["id"], row["responses"]
        except (ValueError, KeyError, TypeError) as error:
            raise GradeError(
                f'{file}:{number}: got {line[:80]!r}; write {{"id": …, "responses": [text, …]}}'
            ) from error
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise GradeError(f"{file}:{number}: 'responses' is not a list of texts; give a list of at least one text")
        if name in found:
            raise GradeError(f"{file}:{number}: id {name} is repeated; keep one row with all its responses")
        found[name] = texts
    return found


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gold", type=Path, required=True, help="gold/dev.jsonl or gold/test.jsonl")
    parser.add_argument("--responses", type=Path, required=True, help="JSONL of id and responses")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    try:
        gold = [json.loads(line) for line in arguments.gold.read_text(encoding="utf-8").splitlines()]
        report = grade(gold, read_responses(arguments.responses))
    except (GradeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    atomic.write(arguments.out, json.dumps(report, indent=2, ensure_ascii=False).encode())
    for name, result in report["domains"].items():
        low, high = result["interval_95"]
        print(
            f"{name:8s} {result['accuracy']:6.1%} [{low:.1%}, {high:.1%}] n={result['n']} "
            f"best of {result['k']} {result['best_of_k']:.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
