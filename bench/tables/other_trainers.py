"""Table on the mixture as the reward of other trainers."""

from __future__ import annotations

from tables.results import measured_on, read


def other_trainers() -> str:
    """Format the times of responses one by one, of pictures that the router has, and of TRL's steps as Markdown."""
    result = read("integrations")
    if result is None:
        return "Not measured yet; run `python bench/integrations.py` on a machine that does nothing else.\n"
    groups, size = result["groups"], result["size"]
    low, middle, high = result["single_by_one"]
    least, usual, most = (100 * (ratio - 1) for ratio in result["trl_mixture_by_local"])
    lines = (
        f"- {groups * size} calls with one response each take {result['single_calls_s']:.2f} s, one call with the "
        f"{groups} groups {result['one_call_s']:.2f} s: {middle:.2f} times as long (middle half of {result['rounds']} "
        f"rounds: {low:.2f} to {high:.2f}). The clients take {result['client_s']:g} s for a request. As many calls of "
        f"a route that does nothing take {result['bare_calls_s']:.2f} s: this part is HTTP.",
        f"- {groups} groups with a picture of {result['picture_bytes'] / 2**20:.1f} MiB each take "
        f"{result['new_pictures_s']:.2f} s at first and {result['held_pictures_s']:.2f} s again.",
        f"- A step of TRL {result['trl']} on a tiny model takes {result['trl_mixture_s']:.2f} s with the mixture and "
        f"{result['trl_local_s']:.2f} s with a local reward function of the clients' latency: {usual:+.1f} % (middle "
        f"half of {result['trl_steps'] // 2} pairs of steps: {least:+.1f} to {most:+.1f} %).",
        "",
        measured_on(result, "python bench/integrations.py"),
    )
    return "\n".join(lines) + "\n"
