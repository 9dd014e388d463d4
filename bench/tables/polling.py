"""Table on the cost of polling run control."""

from __future__ import annotations

from tables.results import measured_on, read


def polling() -> str:
    """Format responses per second, a long history, and polls during a training as Markdown."""
    result = read("status")
    if result is None:
        return "Not measured yet; run `python bench/status.py`.\n"
    unchanged, history, training = (result[name] for name in ("unchanged", "history", "during_training"))
    low, high = training["longer_percent_quartiles"]
    lines = (
        f"- On one core {unchanged['answers_per_second']:,.0f} unchanged snapshots (304) per second, over "
        f"{unchanged['connections']} connections.",
        f"- A history of {history['steps']:,} steps is down-sampled to {history['points']:,} points in "
        f"{history['median_ms']:.0f} ms.",
        f"- {training['polls_a_second']} polls per second of a run whose services share both cores, every other with "
        f"an `ETag`: {training['poll_ms_median']:.1f} ms in the median, {training['poll_ms_p99']:.0f} ms at the 99th "
        f"percentile. With them the time of a step, {training['step_seconds']:.1f} s, changes by "
        f"{training['longer_percent_median']:+.1f} %, in the median of {training['pairs']} pairs of blocks of "
        f"{training['steps_a_block']} steps (middle half of the pairs: {low:+.0f} to {high:+.0f} %).",
        "",
        measured_on(result, "python bench/status.py"),
    )
    return "\n".join(lines) + "\n"
