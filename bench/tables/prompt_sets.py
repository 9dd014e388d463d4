"""Table on the index of a large prompt set."""

from __future__ import annotations

from typing import Any

from tables.results import measured_on, read, table


def prompt_sets() -> str:
    """Format time and memory of indexed prompts and of prompts in memory as Markdown."""
    result = read("prompt-index")
    if result is None:
        return "Not measured yet; run `python bench/prompt_index.py`.\n"
    data, whole = result["data"], result["read_prompts_of_part"]
    sizes = {"index_of_all_rows": result["index_of_all_rows"], "index_of_part": result["index_of_part"]}
    rows = [
        [
            "",
            *(f"index, {found['build']['rows']:,} rows" for found in sizes.values()),
            f"in memory, {whole['rows']:,} rows",
        ],
        ["---", *["--:"] * 3],
        [
            "first start, s; of the processor, s",
            *(_seconds(found["build"]) for found in sizes.values()),
            _seconds(whole),
        ],
        [
            "later start, s",
            *(f"{found['use']['open_seconds']:.2f}" for found in sizes.values()),
            f"{whole['seconds']:.1f}",
        ],
        ["peak memory at first start, MB", *(_peak(found["build"]) for found in sizes.values()), _peak(whole)],
        ["peak memory in use, MB", *(_peak(found["use"]) for found in sizes.values()), _peak(whole)],
        ["prompts a second at random", *(f"{found['use']['reads_per_second']:,}" for found in sizes.values()), ""],
        ["index on disk, MB", *(f"{found['build']['index_mb']:,.0f}" for found in sizes.values()), ""],
    ]
    text = (
        f"Each row has a picture of {data['side']} x {data['side']} pixels in a file of its own, "
        f"{data['mean_picture_bytes'] / 1e3:.0f} kB as JPEG; the files are links to {data['pictures']:,} different "
        "pictures. Peak memory is all that the process had, libraries included. Other programs kept the cores busy, so "
        "that the seconds of CPU say more than those by the clock.\n"
        f"{measured_on(result, 'python bench/prompt_index.py')}\n"
    )
    return f"{table(rows)}\n{text}"


def _seconds(found: dict[str, Any]) -> str:
    return f"{found['seconds']:,.0f}; {found['cpu_seconds']:,.0f}"


def _peak(found: dict[str, Any]) -> str:
    return f"{found['peak_mb']:,.0f}"
