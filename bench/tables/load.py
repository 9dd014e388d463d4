"""Table on the load that routers carry, on waiting calls, and on a text classifier beside vLLM."""

from __future__ import annotations

from typing import Any

from load.plots import cpu_ms

from tables.results import measured_on, read, table

_NOT_MEASURED = "Not measured yet; run `python bench/load.py` on a machine that does nothing else.\n"


def load() -> str:
    """Format the parts that were measured as Markdown."""
    result = read("load")
    if result is None:
        return _NOT_MEASURED
    measured = [part for part in _PARTS if part in result]
    texts = [_PARTS[part](result[part]) for part in measured]
    commits = " and ".join(
        f"{commit} ({', '.join(part for part in measured if result[part]['commit'] == commit)})"
        for commit in dict.fromkeys(result[part]["commit"] for part in measured)
    )
    return "\n".join(texts) + f"\n{measured_on({**result, 'commit': commits}, 'python bench/load.py')}\n"


def _router(found: dict[str, Any]) -> str:
    groups, bound = found["groups"], found["bound_s"]
    head = ["clients", "replicas", "groups/s", "calls in flight", "p50, s", "p99, s", "routers' cores"]
    head.append("routers' CPU time of a group, ms")
    rows = [[str(cell["clients"]), str(cell["replicas"]), *_step(cell, groups)] for cell in found["cells"]]
    return (
        table([head, ["--:"] * len(head), *rows])
        + f"\nMost groups a second while the slowest of a hundred calls takes at most {bound:g} s; a call has {groups} "
        f"groups of {found['responses']} responses with a picture each. Where no load keeps the bound, the figures of "
        "a single call in flight stand in brackets. Callers, clients and Valkey share the cores.\n"
        "\n![Groups a second and CPU time of a group, by clients](../bench/results/load.svg)\n"
    )


def _step(cell: dict[str, Any], groups: int) -> list[str]:
    step = cell["best"] or cell["steps"][0]
    shown = [f"{groups * step['per_second']:.0f}", f"{step['at_once']}", f"{step['p50_s']:.2f}", f"{step['p99_s']:.2f}"]
    shown += [f"{step['cores']:.2f}", f"{cpu_ms(step, groups):.1f}"]
    return shown if cell["best"] else [f"({figure})" for figure in shown]


def _pool(found: dict[str, Any]) -> str:
    ways: dict[str, dict[str, float]] = found["cpu_ms_per_call"]
    counts = list(next(iter(ways.values())))
    rows = [
        ["calls that wait for one client", *counts],
        ["---", *["--:"] * len(counts)],
        *([way, *(f"{ms:.2f}" for ms in row.values())] for way, row in ways.items()),
    ]
    return f"{table(rows)}\nCPU time of a call, ms; the client takes {found['concurrency']} at a time.\n"


def _classifier(found: dict[str, Any]) -> str:
    low, middle, high = found["ratio"]
    rates = ", ".join(f"{title} {rate:.0f}" for title, rate in found["responses_per_second"].items())
    return (
        f"Responses a second of one text classifier: {rates}; ratio {middle:.2f} (middle half of the rounds: {low:.2f} "
        f"to {high:.2f}). Requests of {found['groups'] * found['responses']} responses of {found['words']} words, "
        f"{found['callers']} at a time.\n"
    )


_PARTS = {"router": _router, "pool": _pool, "classifier": _classifier}
