"""Tables of faults, what happens at each and how long training pauses, and of a soak: results of ``make chaos``."""

from __future__ import annotations

from typing import Any

from tables.results import measured_on, read, table

_COMMAND = "make chaos CHAOS_REPORT=bench/results/chaos.json"
_SOAK_COMMAND = "make chaos SEEDS=1 FAULTS=0 SOAK=120 CHAOS_REPORT=bench/results/soak.json"


def faults() -> str:
    """Format the latest campaign as Markdown."""
    result = read("chaos")
    if result is None:
        return f"Not measured yet; run `{_COMMAND}`.\n"
    takeover = result["longest_takeover_s"]
    start, pause = result["slowest_start_s"], result["longest_pause_s"]
    text = (
        f"{result['faults']} faults over {len(result['seeds'])} seeds in {result['minutes']:g} minutes, with "
        f"{result['runs']} runs, {result['steps']} steps and {result['groups']} groups: {result['problems']} broken "
        f"invariants. The slowest process needed {start:.0f} s to start. The longest pause was {pause:.0f} s"
        + (f", the longest takeover {takeover:.1f} s. " if takeover is not None else ". ")
        + f"{measured_on(result, _COMMAND)}\n"
    )
    return f"{kinds(result)}\n{text}"


def kinds(result: dict[str, Any]) -> str:
    """Format the kinds of faults as Markdown."""
    rows = [["fault", "times", "median pause, s", "longest, s", "what happens"], ["---", "--:", "--:", "--:", "---"]]
    for kind, found in result["kinds"].items():
        pauses = [found["median_pause_s"], found["longest_pause_s"]]
        seconds = ["" if pause is None else f"{pause:.1f}" for pause in pauses]
        rows.append([kind, str(found["faults"]), *seconds, found["happens"]])
    return table(rows)


def soak() -> str:
    """Format the latest soak as Markdown."""
    result = read("soak")
    if result is None:
        return f"Not measured yet; run `{_SOAK_COMMAND}`.\n"
    rows = [["what", "second quarter", "last quarter"], ["---", "--:", "--:"]]
    for found in result["results"]:
        rows += [
            [name, f"{figures['second_quarter']:.1f}", f"{figures['last_quarter']:.1f}"]
            for name, figures in found["usage"].items()
        ]
    text = (
        f"Medians of two quarters of {result['minutes']:.0f} minutes, with {result['runs']} runs and {result['steps']} "
        f"steps: {result['problems']} broken invariants. {measured_on(result, _SOAK_COMMAND)}\n"
    )
    return f"{table(rows)}\n{text}"
