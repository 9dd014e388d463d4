"""Table on the mixture as the reward of other trainers."""

from __future__ import annotations

from tables.results import measured_on, read


def other_trainers() -> str:
    """Format the times of responses one by one, and of pictures that the router has, as Markdown."""
    result = read("integrations")
    if result is None:
        return "Not measured yet; run `python bench/integrations.py` on a machine that does nothing else.\n"
    groups, size = result["groups"], result["size"]
    low, middle, high = result["single_by_one"]
    lines = (
        f"- {groups * size} calls with one response each take {result['single_calls_s']:.2f} s, one call with the "
        f"{groups} groups {result['one_call_s']:.2f} s: {middle:.2f} times as long (middle half of {result['rounds']} "
        f"rounds: {low:.2f} to {high:.2f}). The clients take {result['client_s']:g} s for a request.",
        f"- {groups} groups with a picture of {result['picture_bytes'] / 2**20:.1f} MiB each take "
        f"{result['new_pictures_s']:.2f} s at first and {result['held_pictures_s']:.2f} s again.",
        "",
        measured_on(result, "python bench/integrations.py"),
    )
    return "\n".join(lines) + "\n"
