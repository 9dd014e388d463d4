"""View of a user from outside, while faults come and go: steps, event streams, memory, descriptors and disk."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.chaos.cluster import ADMIN, Cluster

_LOOK_S = 0.1
_SAMPLE_S = 5.0
"""Seconds between looks at memory, descriptors and disk."""


class Pace:
    """Times of the steps of each run, from the weights in its folder: run control may be away."""

    def __init__(self, cluster: Cluster) -> None:
        self._runs = cluster.runs
        self._seen: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self._steps: dict[str, list[float]] = defaultdict(list)
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="pace")
        self._looking = self._threads.submit(self._look)

    def stop(self) -> None:
        """Stop, and raise what ended the looks before, if something did."""
        self._over.set()
        self._looking.result(timeout=60)
        self._threads.shutdown()

    def after(self, run: str, at: float) -> list[float]:
        """Return the monotonic times of the run's steps after ``at``."""
        return [step for step in list(self._steps[run]) if step > at]

    def _look(self) -> None:
        while not self._over.wait(_LOOK_S):
            for run in _entries(self._runs):
                for version in _entries(run / "weights"):
                    if not version.name[0].isdigit():
                        continue
                    with contextlib.suppress(OSError):
                        mark = (version.name, version.stat().st_mtime_ns)
                        if mark not in self._seen[run.name]:
                            self._seen[run.name].add(mark)
                            self._steps[run.name].append(time.monotonic())


class EventReader:
    """Reader of a run's event stream, as the dashboard is one: it continues after its last event when it is cut off."""

    def __init__(self, cluster: Cluster, run: str) -> None:
        self.run = run
        self.ids: list[str] = []
        self.kinds: list[str] = []
        self.reconnected = 0
        self._url = f"http://127.0.0.1:{cluster.links['user>control'].port}/v1/runs/{run}/events"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name=f"events {run}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()

    def _read(self) -> None:
        timeout = httpx.Timeout(5, read=20)
        with httpx.Client(headers={"Authorization": f"Bearer {ADMIN}"}, timeout=timeout) as http:
            while not self._over.is_set():
                last = self.ids[-1] if self.ids else f"{self.run}/0"
                with (
                    contextlib.suppress(httpx.HTTPError),
                    http.stream("GET", self._url, headers={"Last-Event-ID": last}) as reply,
                ):
                    if reply.is_success:
                        self._take(reply)
                self.reconnected += 1
                self._over.wait(0.3)

    def _take(self, reply: httpx.Response) -> None:
        event = ""
        for line in reply.iter_lines():
            if self._over.is_set():
                return
            if line.startswith("event: "):
                event = line.removeprefix("event: ")
            elif line.startswith("id: "):
                found = line.removeprefix("id: ")
            elif line.startswith("data: "):
                json.loads(line.removeprefix("data: "))
                self.ids.append(found)
                self.kinds.append(event)


@dataclass
class Usage:
    """Memory, descriptors and disk over the time of a soak."""

    at: list[float] = field(default_factory=list)
    memory_mb: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    descriptors: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    disk_mb: list[float] = field(default_factory=list)
    """Size of all runs' folders without their final models, which nobody but their owners deletes."""
    queue_mb: list[float] = field(default_factory=list)
    history_mb: list[float] = field(default_factory=list)
    """Size of the history. It grows: metrics and evaluations stay."""


class UsageSampler:
    """Sampler of what the processes use, as the kernel counts it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.usage = Usage()
        self._over = threading.Event()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="usage")
        self._sampling = self._threads.submit(self._sample)

    def check(self) -> None:
        """Raise what ended the sampling, if something did."""
        if self._sampling.done():
            self._sampling.result()

    def stop(self) -> Usage:
        self._over.set()
        self._sampling.result(timeout=60)
        self._threads.shutdown()
        return self.usage

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self.usage.at.append(time.monotonic())
            for name, service in self._cluster.services.items():
                pid = service.pid
                with contextlib.suppress(OSError, IndexError):
                    status = Path(f"/proc/{pid}/status").read_text()
                    resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
                    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
                    self.usage.memory_mb[name].append(resident)
                    self.usage.descriptors[name].append(descriptors)
            runs = self._cluster.runs
            parts = [part for run in _entries(runs) if run.name[0].islower() for part in _entries(run)]
            self.usage.disk_mb.append(sum(_size(part) for part in parts if part.name != "final") / 1e6)
            self.usage.queue_mb.append(_size(self._cluster.folder / "queue") / 1e6)
            self.usage.history_mb.append(sum(map(_size, runs.glob("history.sqlite3*"))) / 1e6)


def _entries(folder: Path) -> list[Path]:
    """List a folder; nothing where it is gone or a file."""
    with contextlib.suppress(OSError):
        return list(folder.iterdir())
    return []


def _size(path: Path) -> int:
    """Return the bytes of a file, or of those of a folder, which may change meanwhile."""
    files = [path] if path.is_file() else [Path(at, name) for at, _, names in os.walk(path) for name in names]
    total = 0
    for file in files:
        with contextlib.suppress(OSError):
            total += file.lstat().st_size
    return total
