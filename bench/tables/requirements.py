"""Hardware that MoR takes, from the smallest installation to one with GPUs: README's table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tables.results import read, table

_CPU_IMAGES = ("router", "reward", "trainer", "rollout")
_GPU_PROFILE = Path(__file__).parents[2] / "helm" / "mor" / "ci" / "single-gpu-values.yaml"


def requirements() -> str:
    """Format CPU, memory, disk and GPUs of the demonstration and of two profiles of the chart as Markdown."""
    demo, containers, images = read("demo-default"), read("containers"), read("images")
    if demo is None or containers is None or images is None:
        return "Not measured yet: run `bench/demo.py`, `bench/containers.py` and `bench/images.py`.\n"
    peak = max(run["peak_memory_gb"] for run in demo["arms"]["aligned"]["runs"])
    requested, sizes = containers["tiny_profile_requests"], images["images"]
    profile = yaml.safe_load(_GPU_PROFILE.read_text())
    rows = [
        ["installation", "CPU, cores", "memory", "disk", "GPU"],
        ["---", "--:", "--:", "--:", "---"],
        [
            "`make demo`, no cluster",
            f"{demo['machine']['cores']}",
            f"{peak:.1f} GB at peak",
            "about 6 GB, most of it the virtual environment",
            "none",
        ],
        [
            "chart, [smallest profile](helm/mor/ci/tiny-cpu-values.yaml)",
            f"{requested['cores']:.2f} requested",
            f"{requested['memory_gib']:.1f} GiB requested",
            f"{sum(sizes[name]['gb'] for name in _CPU_IMAGES):.1f} GB of images",
            "none",
        ],
        [
            f"chart, [{profile['model']['name']}](helm/mor/ci/single-gpu-values.yaml)",
            f"{_requested(profile, 'cpu')} requested, training and sampling",
            f"{_requested(profile, 'memory')} requested",
            f"{profile['control']['runs']['size']} for runs; CUDA images of {sizes['trainer-cuda']['gb']:.1f} and "
            f"{sizes['rollout-cuda']['gb']:.1f} GB",
            f"{profile['worker']['gpus']} to train, {profile['rollout']['gpus']} to sample",
        ],
    ]
    return table(rows)


def _requested(profile: dict[str, Any], what: str) -> str:
    return " + ".join(profile[part]["resources"]["requests"][what] for part in ("worker", "rollout"))
