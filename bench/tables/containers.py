"""The charts' pods in containers."""

from __future__ import annotations

from typing import Any

from tables.results import read, table


def containers() -> str:
    """Start-up and restarts of the images' containers, as Markdown."""
    result = read("containers")
    if result is None:
        return "Not measured yet: run `python bench/containers.py`.\n"
    requests, run, machine = result["tiny_profile_requests"], result["restarts"], result["machine"]
    stalls = ", ".join(f"{event} {seconds:.0f} s" for event, seconds in run["stall_s"].items())
    sentences = (
        f"The tiny profile requests {requests['memory_gib']:.1f} GiB and {requests['cores']:.2f} cores in all. Its "
        "pods run from the rendered manifests, with a random model of under a million parameters; a start is the time "
        "from the process's start until `/readyz` succeeds. `helm test`, with its run of two steps, took "
        f"{result['helm_test_s']:.0f} s.",
        f"In a run of {run['steps']} steps of {run['step_median_s']:.1f} s, the longest time without a step after an "
        f"interruption: {stalls}. {run['groups_applied_once']} of {run['groups']} groups were applied, none twice.",
        f"Measured {result['measured']} on {machine['cores']} cores of {machine['processor']}, "
        f"{machine['memory_gb']:.0f} GB, by `python bench/containers.py` at commit {result['commit']}.",
    )
    return "\n".join((_containers(result), *sentences)) + "\n"


def images() -> str:
    """Sizes of the images, as Markdown."""
    result = read("images")
    if result is None:
        return "Not measured yet: run `python bench/images.py`.\n"
    found: dict[str, Any] = result["images"]
    rows = [
        ["image", "GB, unpacked", "commit"],
        ["---", "--:", "---"],
        *([name, f"{image['gb']:.2f}", image["commit"]] for name, image in found.items()),
    ]
    return f"{table(rows)}\nSizes include the base. `python bench/images.py`, {result['measured']}.\n"


def _containers(result: dict[str, Any]) -> str:
    names = {"control": "run control", "reward": "reward, with a function"}
    rows = [
        ["container", "first start, s", "restart, s: median, longest", "peak memory, GB"],
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
