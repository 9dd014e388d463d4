"""Main memory that a process may still use: of the machine, and of its container."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
"""Limit and use, in the files of version 2 and of version 1."""
_FILE_CACHE = re.compile(r"^(?:inactive_file|total_inactive_file) (\d+)$", re.MULTILINE)


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the memory that is free, bytes; ``None`` where the system does not say."""
    found = []
    with suppress(OSError, AttributeError):
        text = (proc / "meminfo").read_text()
        found.append(int(re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)[1]) << 10)  # type: ignore[index]
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # ``max`` is no number: there is no limit
            left = int((cgroup / limit).read_text()) - int((cgroup / used).read_text())
            found.append(max(0, left + _file_cache((cgroup / used).parent)))
    return min(found, default=None)


def _file_cache(folder: Path) -> int:
    """Return the bytes of files in memory that the system gives up when a process needs the room."""
    with suppress(OSError):
        return max(map(int, _FILE_CACHE.findall((folder / "memory.stat").read_text())), default=0)
    return 0
