"""Table of reward services in front of slow upstreams."""

from __future__ import annotations

from tables.results import measured_on, read, table


def upstreams() -> str:
    """Format the time of a request by way of a service over that of the upstream's calls alone, as Markdown."""
    result = read("upstreams")
    if result is None:
        return "Not measured yet; run `python bench/upstreams.py`.\n"
    rows = [["protocol", "calls", "seconds", "times the upstream's own"], ["---", "--:", "--:", "--:"]]
    for protocol, found in result["protocols"].items():
        rows.append([f"`{protocol}`", str(found["calls"]), f"{found['seconds']:.2f}", f"{found['ratio']:.2f}"])
    return (
        f"{table(rows)}\nOne request of {result['groups']} groups of {result['responses']}, to an upstream with "
        f"{result['at_once']} calls at a time, of {result['delay_s']:g} s each; median of several. "
        f"{measured_on(result, 'python bench/upstreams.py')}\n"
    )
