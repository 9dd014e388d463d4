"""Tables on the charts' pods in containers."""

from __future__ import annotations

from typing import Any

from tables.results import read, table


def containers() -> str:
    """Format start-up and restarts of the images' containers as Markdown."""
    result = read("containers")
    if result is None:
        return "Not measured yet; run `python bench/containers.py`.\n"
    requested, run, machine = result["tiny_profile_requests"], result["restarts"], result["machine"]
    stalls = ", ".join(f"{event} {seconds:.0f} s" for event, seconds in run["stall_s"].items())
    text = (
        f"The tiny profile requests {requested['memory_gib']:.1f} GiB and {requested['cores']:.2f} cores in all. Its "
        "pods run from the rendered manifests, with a random model of under a million parameters; the start-up time is "
        f"from the start of the process until `/readyz` succeeds. `helm test` took {result['helm_test_s']:.0f} s, with "
        "its run of two steps.",
        f"In a run of {run['steps']} steps of {run['step_median_s']:.1f} s, the longest time without a step after an "
        f"interruption: {stalls}. {run['groups_applied_once']} of {run['groups']} groups were applied, none twice.",
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']:.0f} GB, by `python bench/containers.py` at commit {result['commit']}.",
    )
    return "\n".join((_containers(result), *text)) + "\n"


def images() -> str:
    """Format the sizes of the images as Markdown."""
    result = read("images")
    if result is None:
        return "Not measured yet; run `python bench/images.py`.\n"
    found: dict[str, Any] = result["images"]
    rows = [
        ["image", "GB, unpacked", "commit"],
        ["---", "--:", "---"],
        *([name, f"{image['gb']:.2f}", image["commit"]] for name, image in found.items()),
    ]
    return f"{table(rows)}\nBase image included. `python bench/images.py`, {result['measured']}.\n"


def _containers(result: dict[str, Any]) -> str:
    names = {"control": "run control", "reward": "reward, with a function"}
    rows = [
        ["container", "first start, s", "restart, s: median, maximum", "peak memory, GB"],
        ["---", *["--:"] * 3],
    ]
    for name, peak in result["peak_memory_gb"].items():
        start = result["start"].get(name)
        rows.append(
            [
                names.get(name, name),
                *(
                    ("", "")
                    if start is None
                    else (f"{start['first_s']:.1f}", "{median_s:.1f}, {longest_s:.1f}".format(**start))
                ),
                f"{peak:.2f}",
            ]
        )
    return table(rows)
